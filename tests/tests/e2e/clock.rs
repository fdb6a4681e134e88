//! Rules that ask for the time: the evaluator, which the kernel tells nothing of the rule, names the one that has counted.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;

use crate::support::{end_well, udp};

use Place::{A, R};

const PORT: u16 = 3970;
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `hh:mm:ss`.
fn clock(second: u64) -> String {
    let second = second.min(86_399);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{hour:02}:{minute:02}:{:02}", second % 60)
}

/// Ten minutes around this second of the day.
fn around(second: u64) -> (String, String) {
    (clock(second.saturating_sub(300)), clock(second + 300))
}

/// Drops a packet to each of so many ports; each by the rule whose comment is the port and `yes`.
fn judge(net: &Net, count: u16) -> Result<()> {
    let mut run = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
    for port in PORT..PORT + count {
        udp(net, A, R, false, (4970, port));
        let event = run.next_drop()?.json;
        ensure!(
            at(&event, "evidence.confidence") == "computed"
                && at(&event, "rule.comment") == format!("{port} yes").as_str(),
            "{event}"
        );
    }
    end_well(run)
}

fn now() -> Result<(u64, usize)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok((now % 86_400, (now / 86_400 + 4) as usize % 7))
}

#[test]
fn the_time_of_nft_is_the_kernels() -> Result<()> {
    let net = Net::routed()?;
    let (second, day) = now()?;
    let (here, there) = (around(second), around((second + 43_200) % 86_400));
    let (today, tomorrow) = (DAYS[day], DAYS[(day + 1) % 7]);
    let mut rules = String::new();
    let cases = [
        (
            format!("hour \"{}\"-\"{}\"", there.0, there.1),
            format!("hour \"{}\"-\"{}\"", here.0, here.1),
        ),
        (
            format!(
                "hour \"{}\"-\"{}\" meta hour != \"{}\"",
                there.0, there.1, there.0
            ),
            format!("hour >= \"{}\"", here.0),
        ),
        (format!("day {tomorrow}"), format!("day {today}")),
        (
            format!("day != {{ {today}, {tomorrow} }}"),
            format!("day {{ {today}, {tomorrow} }}"),
        ),
        (
            "time < \"2020-01-01 00:00:00\"".to_owned(),
            "time \"2020-01-01 00:00:00\"-\"2100-01-01 00:00:00\"".to_owned(),
        ),
    ];
    for (port, (no, yes)) in (PORT..).zip(&cases) {
        rules += &format!("udp dport {port} meta {no} counter drop comment \"{port} no\"\n");
        rules += &format!("udp dport {port} meta {yes} counter drop comment \"{port} yes\"\n");
    }
    let table =
        format!("table ip t {{ chain in {{ type filter hook input priority 0\n{rules}}}\n}}");
    // nft takes hours to be of the zone of whoever loads them.
    net.r
        .command(&["env", "TZ=UTC", "nft", "-f", "-"], &table)?;
    judge(&net, cases.len() as u16)?;
    counted(&net, cases.len())
}

#[test]
fn the_time_of_iptables_is_the_kernels() -> Result<()> {
    for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let net = Net::routed()?;
        let (second, day) = now()?;
        let (here, there) = (around(second), around((second + 43_200) % 86_400));
        let (today, tomorrow) = (DAYS[day], DAYS[(day + 1) % 7]);
        let cases = [
            (
                format!("--timestart {} --timestop {}", there.0, there.1),
                format!("--timestart {} --timestop {}", here.0, here.1),
            ),
            (
                format!("--weekdays {tomorrow}"),
                format!("--weekdays {today}"),
            ),
            (
                "--datestop 2020-01-01".to_owned(),
                "--datestart 2020-01-01 --kerneltz".to_owned(),
            ),
        ];
        let mut rules = "*filter\n".to_owned();
        for (port, (no, yes)) in (PORT..).zip(&cases) {
            for (time, comment) in [(no, "no"), (yes, "yes")] {
                rules += &format!(
                    "-A INPUT -p udp --dport {port} -m time {time} -m comment --comment \"{port} {comment}\" -j DROP\n"
                );
            }
        }
        net.r.command(&[restore], &(rules + "COMMIT\n"))?;
        judge(&net, cases.len() as u16)?;
    }
    Ok(())
}

/// The kernel has counted the rules that are meant, and no other.
fn counted(net: &Net, cases: usize) -> Result<()> {
    let ruleset = nft::list(&net.r)?;
    let counted = ruleset.rules.iter().filter(|rule| rule.packets == Some(1));
    let comments: Vec<_> = counted.filter_map(|rule| rule.comment.as_deref()).collect();
    let meant = comments.iter().all(|comment| comment.ends_with("yes"));
    ensure!(meant && comments.len() == cases, "{comments:?}");
    Ok(())
}
