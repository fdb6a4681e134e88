//! fwtrace as an interface of Wireshark, and the fields of its dissector, as tshark has them.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::{self, Fwtrace};
use e2e::net::{Net, Place};
use e2e::{nft, wait_until};
use tempfile::TempDir;

use crate::support::udp;

use Place::{A, R};

const RULES: &str = "table inet t {
    chain sub { udp dport 5001 counter drop comment \"hit\"
    }
    chain in { type filter hook input priority 0
        udp dport 5000-5999 jump sub
    }
    chain late { type filter hook input priority 10; policy drop
        meta l4proto != udp accept
    }
}";

/// A directory of Wireshark's in which it finds fwtrace.
fn extcap_dir() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    // The personal one of Wireshark 4.0, below its configuration.
    let extcap = dir.path().join("extcap");
    std::fs::create_dir(&extcap)?;
    std::os::unix::fs::symlink(fwtrace::binary()?, extcap.join("fwtrace-extcap"))?;
    Ok(dir)
}

fn tshark(dir: &TempDir) -> Command {
    let mut command = Command::new("tshark");
    // Its preferences are not those of whoever runs the tests.
    command
        .env("WIRESHARK_EXTCAP_DIR", dir.path().join("extcap"))
        .env("WIRESHARK_CONFIG_DIR", dir.path())
        .arg("-n")
        .stdin(Stdio::null());
    command
}

fn dissector() -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tracer/wireshark/fwtrace.lua");
    format!("lua_script:{}", file.display())
}

fn text(command: &mut Command) -> Result<String> {
    let output = command.output().context("tshark")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn an_interface_in_the_list() -> Result<()> {
    let dir = extcap_dir()?;
    let interfaces = text(tshark(&dir).arg("-D"))?;
    ensure!(
        interfaces.contains("fwtrace (fwtrace: dropped packets)"),
        "{interfaces}"
    );
    let types = text(tshark(&dir).args(["-i", "fwtrace", "-L"]))?;
    ensure!(types.contains("EN10MB (Ethernet)"), "{types}");

    let ask = |args: &[&str]| {
        let line = [&["extcap", "--extcap-interface", "fwtrace"], args].concat();
        fwtrace::run(None, &line)
    };
    let config = String::from_utf8(ask(&["--extcap-config"])?.stdout)?;
    for option in ["--netns", "--all-netns", "--filter", "--reason", "--trace"] {
        ensure!(config.contains(&format!("{{call={option}}}")), "{config}");
    }
    // Wireshark colours the filter's entry by this.
    ensure!(
        ask(&["--extcap-capture-filter", "udp port 53"])?
            .status
            .success()
    );
    let wrong = ask(&["--extcap-capture-filter", "udp prot 53"])?;
    ensure!(
        wrong.status.code() == Some(2)
            && String::from_utf8_lossy(&wrong.stderr).contains("syntax error")
    );
    let other = fwtrace::run(
        None,
        &["extcap", "--extcap-interface", "eth0", "--extcap-dlts"],
    )?;
    ensure!(
        other.status.code() == Some(2)
            && String::from_utf8_lossy(&other.stderr).contains("no interface 'eth0'")
    );
    let person = fwtrace::run(None, &["extcap"])?;
    ensure!(String::from_utf8_lossy(&person.stdout).contains("fwtrace-extcap"));
    Ok(())
}

#[test]
fn drops_are_captured() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let dir = extcap_dir()?;
    let handle = nft::list(&net.r)?
        .commented("hit")
        .context("no rule")?
        .handle;
    let fields = [
        "fwtrace.rule",
        "fwtrace.handle",
        "frame.interface_name",
        "udp.dstport",
    ];
    let mut child = tshark(&dir)
        .args(["-X", &dissector(), "-i", "fwtrace", "-c", "3"])
        .args(["-f", "udp dst port 5001 or tcp", "-T", "fields"])
        .args(fields.iter().flat_map(|field| ["-e", field]))
        .arg("-o")
        .arg(format!("extcap.fwtrace.netns:{}", net.r.name()))
        .arg("-o")
        .arg("extcap.fwtrace.filter:src net 10.0.0.0/8")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Until it has seen three: what comes before it captures is not seen.
    let mut status = None;
    wait_until(|| {
        udp(&net, A, R, false, (4000, 5002));
        udp(&net, A, R, true, (4000, 5001));
        udp(&net, A, R, false, (4000, 5001));
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    let status = match status {
        Some(status) => status,
        None => {
            child.kill()?;
            child.wait()?
        }
    };
    let (mut out, mut errors) = (String::new(), String::new());
    child
        .stdout
        .take()
        .context("stdout")?
        .read_to_string(&mut out)?;
    child
        .stderr
        .take()
        .context("stderr")?
        .read_to_string(&mut errors)?;
    ensure!(status.success(), "{status}: {errors}");
    let expected = format!("udp dport 5001 counter drop comment \"hit\"\t{handle}\tr0\t5001");
    let lines: Vec<_> = out.lines().map(|line| line.replace("\\\"", "\"")).collect();
    ensure!(
        lines.len() == 3 && lines.iter().all(|line| *line == expected),
        "{lines:?}, expected {expected}\n{errors}"
    );
    Ok(())
}

#[test]
fn fields_of_each_kind_of_drop() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let iptables = "iptables-nft -I INPUT -p udp --dport 5003 -j DROP";
    let argv: Vec<_> = iptables.split(' ').collect();
    net.r.command(&argv, "")?;
    let dir = extcap_dir()?;
    let file = dir.path().join("x.pcapng");
    let path = file.to_str().context("path")?;
    let mut run = Fwtrace::start(&net.r, &["-w", path, "udp"])?;
    for port in [5001, 5002, 5003] {
        udp(&net, A, R, false, (4000, port));
    }
    let drops: Vec<_> = (0..3).map(|_| run.next_drop()).collect::<Result<_>>()?;
    ensure!(run.interrupt()?.status.success());
    let fields = [
        "verdict",
        "engine",
        "family",
        "table",
        "chain",
        "number",
        "handle",
        "rule",
        "policy",
        "conntrack",
        "source",
        "confidence",
    ];
    let select = |filter: &str| -> Result<Vec<Vec<String>>> {
        let mut command = tshark(&dir);
        command.args(["-X", &dissector(), "-r", path, "-Y", filter, "-T", "fields"]);
        for field in fields {
            command.args(["-e", &format!("fwtrace.{field}")]);
        }
        let unescaped = |field: &str| field.replace("\\\"", "\"");
        Ok(text(&mut command)?
            .lines()
            .map(|line| line.split('\t').map(unescaped).collect())
            .collect())
    };
    let all = select("fwtrace")?;
    ensure!(all.len() == 3, "{all:?}");
    for (line, drop) in all.iter().zip(&drops) {
        let json = &drop.json;
        let place = if json["rule"].is_null() {
            &json["policy"]
        } else {
            &json["rule"]
        };
        let plain = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        };
        let expected = [
            plain(&json["verdict"]),
            plain(&json["engine"]),
            plain(&place["family"]),
            plain(&place["table"]),
            plain(&place["chain"]),
            plain(&json["rule"]["number"]),
            plain(&json["rule"]["handle"]),
            plain(&json["rule"]["text"]),
            if json["rule"].is_null() {
                "drop".to_owned()
            } else {
                String::new()
            },
            plain(&json["conntrack"]["state"]),
            plain(&json["evidence"]["source"]),
            plain(&json["evidence"]["confidence"]),
        ];
        ensure!(
            *line == expected,
            "{line:?}\nexpected {expected:?}\nof {json}"
        );
    }
    ensure!(drops[1].json["rule"].is_null(), "{}", drops[1].json);
    // And fwtrace's own reader, with an expression.
    let read = fwtrace::run(None, &["-r", path, "--json", "udp dst port 5001 or tcp"])?;
    let read = String::from_utf8(read.stdout)?;
    let read: Vec<_> = read
        .lines()
        .filter(|l| l.contains("\"type\":\"drop\""))
        .collect();
    ensure!(
        read.len() == 1 && read[0].contains("\"dport\":5001"),
        "{read:?}"
    );
    for (filter, count) in [
        ("fwtrace.chain == \"sub\"", 1),
        ("fwtrace.policy == \"drop\"", 1),
        ("fwtrace.engine == \"iptables-nft\"", 1),
        (
            "fwtrace.confidence == \"exact\" && fwtrace.verdict == \"drop\"",
            3,
        ),
        ("fwtrace.handle > 100000", 0),
    ] {
        let found = select(filter)?.len();
        ensure!(found == count, "{filter}: {found}, expected {count}");
    }
    Ok(())
}
