//! Beside other programs that read from netfilter, and under the rulesets of other programs, as their packages ship them.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft::{self, Rule};
use e2e::packages::Packages;
use e2e::{conntrack, wait_until};

use crate::support::udp;

use Place::{A, R};

/// One group for the other program, one for fwtrace.
const TWO: &str = "table inet t { chain in { type filter hook input priority 0
    udp dport 53 log group 5 prefix \"five \" log group 6 prefix \"six \" counter drop comment \"hit\"
}\n}";

/// A process that is killed when the test is over.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // Ended already: that is what was wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn packages() -> Result<Packages> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    Packages::fetched(target.context("no target directory")?)
}

/// Starts a program in the router, and waits until it has group 5.
fn on_group_five(net: &Net, command: &mut Command) -> Result<Other> {
    let other = Other(net.r.run(|| command.stderr(Stdio::null()).spawn())?);
    let read = || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
    let bound = wait_until(|| {
        let text = net.r.run(read).unwrap_or_default();
        text.lines()
            .any(|line| line.split_whitespace().next() == Some("5"))
    });
    ensure!(bound, "{command:?} does not listen");
    Ok(other)
}

/// Groups of the event's logs.
fn groups(net: &Net, fwtrace: &mut Fwtrace) -> Result<Vec<u64>> {
    udp(net, A, R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    ensure!(at(&event, "rule.comment") == "hit", "{event}");
    ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
    let logs = event["log"].as_array().into_iter().flatten();
    Ok(logs.filter_map(|log| log["group"].as_u64()).collect())
}

/// fwtrace wants the other's group too (which is said), then only its own.
fn shared(net: &Net, other: &Other, name: &str) -> Result<()> {
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    ensure!(groups(net, &mut fwtrace)? == [6]);
    let end = fwtrace.interrupt()?;
    let said = format!(
        "NFLOG group 5 of network namespace {} cannot be listened to: {name} (process {}) has it",
        net.r.name(),
        other.0.id()
    );
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(end.stderr.matches(&said).count() == 1, "{}", end.stderr);
    let mut fwtrace = Fwtrace::start(&net.r, &["--nflog", "6"])?;
    ensure!(groups(net, &mut fwtrace)? == [6]);
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(!end.stderr.contains("cannot be listened"), "{}", end.stderr);
    Ok(())
}

#[test]
fn ulogd_has_one_group_and_fwtrace_another() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, TWO)?;
    let dir = tempfile::tempdir()?;
    let (config, log) = (dir.path().join("conf"), dir.path().join("log"));
    let text = |path: &Path| path.display().to_string();
    let (config, log) = (text(&config), text(&log));
    std::fs::write(
        &config,
        format!(
            "[global]\nlogfile=\"/dev/null\"\nstack=log:NFLOG,base:BASE,ifi:IFINDEX,ip2str:IP2STR,print:PRINTPKT,emu:LOGEMU\n\
             [log]\ngroup=5\n[emu]\nfile=\"{log}\"\nsync=1\n"
        ),
    )?;
    let packages = packages()?;
    let mut command = packages.program("exec ulogd -c \"$1\"", &[&config]);
    let ulogd = on_group_five(&net, &mut command)?;
    shared(&net, &ulogd, "ulogd")?;
    let lines = || std::fs::read_to_string(&log).map_or(0, |t| t.matches("five ").count());
    ensure!(wait_until(|| lines() == 2), "ulogd wrote {} lines", lines());
    Ok(())
}

#[test]
fn tcpdump_has_one_group_and_fwtrace_another() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, TWO)?;
    let mut command = Command::new("tcpdump");
    command
        .args(["-nli", "nflog:5", "-c", "2"])
        .stdout(Stdio::null());
    let mut tcpdump = on_group_five(&net, &mut command)?;
    shared(&net, &tcpdump, "tcpdump")?;
    // It got both packets.
    let mut ended = None;
    wait_until(|| {
        ended = tcpdump.0.try_wait().ok().flatten();
        ended.is_some()
    });
    ensure!(ended.is_some_and(|status| status.success()), "{ended:?}");
    Ok(())
}

#[test]
fn conntrack_tools_read_beside_fwtrace() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0
            udp dport 53 ct state new counter drop comment \"hit\"
        }\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    // One that is let through, and one that is not.
    udp(&net, A, R, false, (4999, 4999));
    udp(&net, A, R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    ensure!(at(&event, "rule.comment") == "hit", "{event}");
    let list = net.r.command(&["conntrack", "-L"], "")?;
    ensure!(list.contains("dport=4999"), "{list}");
    ensure!(!list.contains("dport=53 "), "{list}");
    let count = net.r.command(&["conntrack", "-C"], "")?;
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    let told = &end.summary["conntrack"][0];
    ensure!(told["entries"] == count.trim().parse::<u64>()?, "{told}");
    ensure!(told["max"] == conntrack::limit(&net.r)?, "{told}");
    Ok(())
}

/// The only rule of a chain that this text belongs to.
fn only<'a>(rules: &'a [Rule], chain: &str, text: &str) -> Result<&'a Rule> {
    let mut found = rules
        .iter()
        .filter(|rule| rule.chain == chain && rule.text.contains(text));
    let rule = found.next();
    ensure!(found.next().is_none(), "several {text} in {chain}");
    rule.with_context(|| format!("no {text} in {chain}: {rules:?}"))
}

#[test]
fn under_the_rules_of_ufw() -> Result<()> {
    let net = Net::routed()?;
    // The files that its installation copies.
    packages()?.script(
        &net.r,
        "cp -n /usr/share/ufw/ufw.conf /usr/share/ufw/*.init /usr/share/ufw/iptables/*.rules /etc/ufw/
        ufw --force enable && ufw logging on && ufw deny 53/udp",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    let ruleset = nft::list(&net.r)?;
    let rules: Vec<Rule> = ruleset
        .rules
        .iter()
        .filter(|r| r.family == "ip")
        .cloned()
        .collect();
    let rule = only(&rules, "ufw-user-input", "dport 53 ")?;
    ensure!(rule.packets == Some(1), "scenario: {rule:?}");
    ensure!(at(&event, "rule.chain") == "ufw-user-input", "{event}");
    ensure!(at(&event, "rule.handle") == rule.handle, "{event}");
    ensure!(at(&event, "rule.number") == rule.number, "{event}");
    ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
    // Nobody allows it: the policy, behind a rule that logs to the kernel's log.
    udp(&net, A, R, false, (4054, 5054));
    let event = fwtrace.next_drop()?.json;
    ensure!(at(&event, "packet.dport") == 5054, "{event}");
    ensure!(at(&event, "rule").is_null(), "{event}");
    ensure!(at(&event, "policy.chain") == "INPUT", "{event}");
    ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    ensure!(end.summary.get("logged").is_none(), "{}", end.summary);
    Ok(())
}

/// A bus and the daemon on it; both are killed at the end, so that the rules stay.
const FIREWALLD: &str = r#"
mkdir -p /run/dbus /run/firewalld
cat > /run/bus.conf <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>
END
sed -i s/^LogDenied=.*/LogDenied=all/ /etc/firewalld/firewalld.conf
sed -i s/^DefaultZone=.*/DefaultZone=drop/ /etc/firewalld/firewalld.conf
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket
dbus-daemon --nofork --config-file=/run/bus.conf >&2 &
timeout 20 sh -c 'until [ -S /run/dbus/system_bus_socket ]; do :; done'
/usr/bin/python3 /usr/sbin/firewalld --nofork --nopid >&2 &
timeout 30 sh -c 'until /usr/bin/python3 /usr/bin/firewall-cmd --state; do :; done' >&2
"#;

#[test]
fn under_the_rules_of_firewalld() -> Result<()> {
    let net = Net::routed()?;
    packages()?.script(&net.r, FIREWALLD)?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    udp(&net, A, R, false, (4053, 53));
    let event = fwtrace.next_drop()?.json;
    let rules = nft::list(&net.r)?.rules;
    // LogDenied has a rule of its own ahead of it.
    let log = only(
        &rules,
        "filter_IN_drop",
        "log prefix \"filter_IN_drop_DROP: \"",
    )?;
    let (next, text) = (log.number + 1, "drop");
    let rule = rules
        .iter()
        .find(|rule| rule.chain == log.chain && rule.number == next);
    let rule = rule.with_context(|| format!("nothing behind {log:?}"))?;
    ensure!(rule.text == text, "scenario: {rule:?}");
    ensure!(at(&event, "rule.table") == "firewalld", "{event}");
    ensure!(at(&event, "rule.chain") == rule.chain.as_str(), "{event}");
    ensure!(at(&event, "rule.handle") == rule.handle, "{event}");
    ensure!(at(&event, "rule.number") == rule.number, "{event}");
    ensure!(at(&event, "evidence.confidence") == "exact", "{event}");
    let end = fwtrace.interrupt()?;
    ensure!(end.status.success() && end.drops.is_empty(), "{end:?}");
    ensure!(end.summary.get("logged").is_none(), "{}", end.summary);
    Ok(())
}
