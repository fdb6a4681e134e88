//! `fwtrace rules` on legacy tables: what iptables-legacy-save says. And runs that leave a namespace without tables as it is.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::{self, Fwtrace};
use e2e::net::{Net, Place};
use e2e::netns::Netns;
use e2e::nft;
use serde_json::Value;

use crate::support::{end_well, udp};

use Place::{A, R};

const RULES: &str = "\
*filter
:INPUT DROP [7:700]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [12:3400]
:alpha - [0:0]
:beta - [0:0]
[1:100] -A INPUT -i r0 -j alpha
[2:200] -A INPUT -i eth+ -p tcp -m tcp --dport 22 -j ACCEPT
[3:300] -A INPUT ! -i lo -g beta
[4:400] -A INPUT -p udp
[6:600] -A OUTPUT ! -o eth0 -p tcp -m tcp --dport 25 -m comment --comment \"no mail\" -j REJECT
[8:800] -A alpha -p udp -m udp --dport 9 -j DROP
[9:900] -A alpha -j RETURN
[11:1100] -A beta -j DROP
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 53 -j MARK --set-xmark 0x7/0xffffffff
COMMIT
";

const FAMILIES: [(&str, &str); 2] = [("iptables-legacy", "ip"), ("ip6tables-legacy", "ip6")];

fn load(netns: &Netns, rules: &str) -> Result<()> {
    for (tool, _) in FAMILIES {
        let restore = format!("{tool}-restore");
        netns.command(&[&restore, "-w", "-c"], rules)?;
    }
    Ok(())
}

fn rules(netns: &Netns, args: &[&str]) -> Result<String> {
    let args: Vec<_> = ["rules"].iter().chain(args).copied().collect();
    let output = fwtrace::run(Some(netns), &args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", output.status);
    ensure!(stderr.is_empty(), "{stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

fn json(netns: &Netns, args: &[&str]) -> Result<Vec<Value>> {
    let args: Vec<_> = ["--json"].iter().chain(args).copied().collect();
    let text = rules(netns, &args)?;
    let lines = text.lines().map(serde_json::from_str);
    lines
        .collect::<Result<_, _>>()
        .with_context(|| text.clone())
}

/// What iptables-legacy-save says of a table: declarations of chains, and rules, both with counters.
fn saved(netns: &Netns, tool: &str, table: &str) -> Result<Vec<String>> {
    let text = netns.command(&[&format!("{tool}-save"), "-c", "-t", table], "")?;
    let lines = text
        .lines()
        .filter(|l| l.starts_with(':') || l.starts_with('['));
    Ok(lines.map(str::to_owned).collect())
}

/// The same, made of the objects that `--json` printed.
fn said(lines: &[Value], family: &str, table: &str) -> Result<Vec<String>> {
    let of = |kind: &str| {
        let of = |l: &&Value| l["type"] == kind && l["family"] == family && l["table"] == table;
        lines.iter().filter(of).collect::<Vec<_>>()
    };
    let mut out = Vec::new();
    for chain in of("chain") {
        ensure!(chain["engine"] == "iptables-legacy", "{chain}");
        ensure!(chain.get("handle").is_none(), "{chain}");
        let name = chain["chain"].as_str().context("no name")?;
        let rules = of("rule").iter().filter(|r| r["chain"] == name).count();
        ensure!(chain["rules"] == rules, "{chain}");
        out.push(match chain.get("policy").and_then(Value::as_str) {
            Some(policy) => {
                ensure!(chain["hook"] == name.to_lowercase(), "{chain}");
                ensure!(
                    chain["priority"] == if table == "raw" { -300 } else { 0 },
                    "{chain}"
                );
                let (packets, bytes) = (&chain["packets"], &chain["bytes"]);
                format!(":{name} {} [{packets}:{bytes}]", policy.to_uppercase())
            }
            None => {
                ensure!(chain.get("hook").is_none(), "{chain}");
                format!(":{name} - [0:0]")
            }
        });
    }
    let mut number = (Value::Null, 0);
    for rule in of("rule") {
        ensure!(rule["engine"] == "iptables-legacy", "{rule}");
        ensure!(rule.get("handle").is_none(), "{rule}");
        number = match number {
            (chain, last) if chain == rule["chain"] => (chain, last + 1),
            _ => (rule["chain"].clone(), 1),
        };
        ensure!(rule["number"] == number.1, "{rule}: {number:?}");
        let text = rule["text"].as_str().context("no text")?;
        out.push(format!("[{}:{}] {text}", rule["packets"], rule["bytes"]));
    }
    Ok(out)
}

#[test]
fn rules_are_those_of_iptables_legacy_save() -> Result<()> {
    let net = Net::routed()?;
    load(&net.r, RULES)?;
    nft::load(
        &net.r,
        "table inet t { chain c { counter drop comment \"beside\"\n }\n }",
    )?;
    for v6 in [false, true] {
        udp(&net, A, R, v6, (4901, 9));
    }
    let all = || -> Result<Vec<_>> {
        let tools = FAMILIES
            .iter()
            .flat_map(|f| ["filter", "raw"].map(|t| (f, t)));
        tools
            .map(|((tool, _), table)| saved(&net.r, tool, table))
            .collect()
    };
    // Neighbours talk when they like: only a reading between two equal ones can be compared.
    let mut before = all()?;
    let lines = loop {
        let lines = json(&net.r, &[])?;
        let after = all()?;
        if after == before {
            break lines;
        }
        before = after;
    };
    ensure!(lines.iter().any(|l| l["engine"] == "nftables"), "{lines:?}");
    let tables = FAMILIES
        .iter()
        .flat_map(|(_, f)| ["filter", "raw"].map(|t| (f, t)));
    for ((family, table), saved) in tables.zip(before) {
        let said = said(&lines, family, table)?;
        ensure!(said == saved, "{family} {table}:\n{said:#?}\n{saved:#?}");
    }
    let counted = |l: &&Value| l["chain"] == "alpha" && l["packets"] == 9 && l["number"] == 1;
    ensure!(lines.iter().filter(counted).count() == 2, "{lines:#?}");
    let comment = |l: &&Value| l["comment"] == "no mail";
    ensure!(lines.iter().filter(comment).count() == 2, "{lines:#?}");

    // For people: each line of iptables-save, a rule with its number behind it.
    let text = rules(&net.r, &["--stateless"])?;
    ensure!(text.contains("beside"), "{text}");
    for line in all()?.iter().flatten() {
        let (line, counters) = line.rsplit_once(" [").unwrap_or((line, ""));
        let line = line.split_once("] ").map_or(line, |(_, rule)| rule);
        let is_it = |l: &str| match counters {
            "" => l.starts_with(&format!("{line} # rule ")),
            _ => l.starts_with(line),
        };
        ensure!(text.lines().any(is_it), "{line} is not in\n{text}");
    }
    ensure!(text.contains("-A INPUT -p udp # rule 4\n"), "{text}");
    let text = rules(&net.r, &[])?;
    ensure!(text.contains("\n[6:600] -A OUTPUT "), "{text}");
    Ok(())
}

#[test]
fn only_some_tables_and_chains() -> Result<()> {
    let net = Net::routed()?;
    load(&net.r, RULES)?;
    let tables = |args: &[&str]| -> Result<Vec<String>> {
        let name =
            |l: &Value| format!("{} {} {}", l["family"], l["table"], l["chain"]).replace('"', "");
        let mut names: Vec<_> = json(&net.r, args)?.iter().map(name).collect();
        names.dedup();
        Ok(names)
    };
    let raw = ["ip raw PREROUTING", "ip raw OUTPUT"];
    ensure!(
        tables(&["--table", "ip raw"])? == raw,
        "{:?}",
        tables(&["--table", "ip raw"])
    );
    let both = [
        "ip raw PREROUTING",
        "ip raw OUTPUT",
        "ip6 raw PREROUTING",
        "ip6 raw OUTPUT",
    ];
    ensure!(
        tables(&["--table", "raw"])? == both,
        "{:?}",
        tables(&["--table", "raw"])
    );
    let beta = ["ip filter beta", "ip6 filter beta"];
    ensure!(
        tables(&["--chain", "beta"])? == beta,
        "{:?}",
        tables(&["--chain", "beta"])
    );
    ensure!(tables(&["--table", "raw", "--chain", "beta"])?.is_empty());

    let text = rules(&net.r, &["--chain", "beta", "--stateless"])?;
    ensure!(
        text.matches("\n-A beta -j DROP # rule 1\n").count() == 2,
        "{text}"
    );
    ensure!(!text.contains("1100") && !text.contains("alpha"), "{text}");
    Ok(())
}

#[test]
fn each_namespace_has_its_own() -> Result<()> {
    let net = Net::routed()?;
    load(&net.r, RULES)?;
    net.a
        .command(&["iptables-legacy", "-w", "-P", "FORWARD", "DROP"], "")?;
    for args in [
        &["-N", net.r.name(), "-N", net.a.name(), "-N", net.b.name()][..],
        &["--all-netns"],
    ] {
        let lines = json(&net.b, args)?;
        let of = |netns: &Netns| {
            let of = |l: &&Value| l["netns"]["inode"] == netns.inode() && l["type"] == "chain";
            let name = |l: &Value| format!("{} {} {}", l["family"], l["table"], l["policy"]);
            lines.iter().filter(of).map(name).collect::<Vec<_>>()
        };
        ensure!(of(&net.r).len() == 14, "{args:?}: {lines:#?}");
        let accept = "\"ip\" \"filter\" \"accept\"";
        let drop = "\"ip\" \"filter\" \"drop\"";
        ensure!(of(&net.a) == [accept, drop, accept], "{args:?}: {lines:#?}");
        ensure!(of(&net.b).is_empty(), "{args:?}: {lines:#?}");
    }
    Ok(())
}

/// Asking for a table makes the kernel create it: fwtrace does not.
#[test]
fn no_table_comes_into_being() -> Result<()> {
    let net = Net::routed()?;
    let names = || {
        let both = ["ip_tables_names", "ip6_tables_names"];
        let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        net.r
            .run(|| both.map(|file| read(file).unwrap_or_default()))
    };
    ensure!(names() == ["", ""], "{:?}", names());
    rules(&net.r, &[])?;
    let mut fwtrace = Fwtrace::start(&net.r, &[])?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n udp dport 9 counter drop\n }\n }",
    )?;
    udp(&net, A, R, false, (4902, 9));
    fwtrace.drop_to_port(9)?;
    end_well(fwtrace)?;
    ensure!(names() == ["", ""], "{:?}", names());

    // With one of them, the others stay away.
    net.r
        .command(&["iptables-legacy", "-w", "-t", "mangle", "-N", "x"], "")?;
    rules(&net.r, &[])?;
    end_well(Fwtrace::start(&net.r, &[])?)?;
    ensure!(names() == ["mangle\n", ""], "{:?}", names());
    Ok(())
}

/// Rulesets of nf_tables take CAP_NET_ADMIN, the list of legacy tables takes root: one is printed, the other asked for.
#[test]
fn without_the_permission_it_says_what_is_missing() -> Result<()> {
    let net = Net::routed()?;
    load(&net.r, RULES)?;
    nft::load(
        &net.r,
        "table inet t { chain c { counter drop comment \"beside\"\n }\n }",
    )?;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    let copy = dir.path().join("fwtrace");
    std::fs::copy(fwtrace::binary()?, &copy)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]);
    command.arg(&copy).arg("rules").stdin(Stdio::null());
    let output = net.r.run(|| command.output())?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.code() == Some(3),
        "{}: {stderr}",
        output.status
    );
    ensure!(stdout.contains("beside"), "{stdout}");
    for part in [
        "ip_tables_names",
        "Permission denied",
        "root",
        "CAP_DAC_READ_SEARCH",
    ] {
        ensure!(stderr.contains(part), "{part}: {stderr}");
    }
    Ok(())
}
