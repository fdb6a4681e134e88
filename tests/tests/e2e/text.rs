//! What people read: the lines of DESIGN's form, and the summary on stderr.

use anyhow::{Context, Result, ensure};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;

use crate::support::{L4, Packet, udp};

use Place::{A, B, R};

const RULES: &str = "table inet t {
    chain sub { tcp dport 3800 counter drop comment \"block web\"
    }
    chain in { type filter hook input priority 0
        ct state established accept
        tcp dport 3800 jump sub
        udp dport 3801 counter reject
    }
    chain fw { type filter hook forward priority 0; policy drop
        ct state established accept
        meta l4proto icmpv6 accept
    }
}";

/// Columns are for the eye: single blanks between words.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `14:03:41.512`.
fn is_time(word: &str) -> bool {
    let shape: String = word
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape == "00:00:00.000"
}

/// The line without its time.
fn after_time(line: &str) -> Result<String> {
    let line = words(line);
    let (time, rest) = line.split_once(' ').context("one word")?;
    ensure!(is_time(time), "no time: {line}");
    Ok(rest.to_owned())
}

#[test]
fn one_line_a_drop_and_its_rule_below() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let ruleset = nft::list(&net.r)?;
    let handle = |comment: &str, number: u64| {
        let rules = &ruleset.rules;
        let found = rules
            .iter()
            .find(|r| r.comment.as_deref().unwrap_or_default() == comment && r.number == number);
        found.map(|r| r.handle).context("no rule")
    };
    let web = handle("block web", 1)?;
    let dns = handle("", 3)?;
    let mut fwtrace = Fwtrace::start_as(Some(&net.r), &["--color", "always"])?;
    let tcp = Packet {
        l4: L4::Tcp,
        v6: false,
        from: A,
        to: R,
        ports: (4800, 3800),
    };
    tcp.send(&net)?;
    let first = fwtrace.next_line()?;
    ensure!(first.contains('\u{1b}'), "no colour: {first:?}");
    let _ = fwtrace.interrupt()?;

    let mut fwtrace = Fwtrace::start_as(Some(&net.r), &[])?;
    tcp.send(&net)?;
    let line = fwtrace.next_line()?;
    ensure!(!line.contains('\u{1b}'), "colour in a pipe: {line:?}");
    let expected = format!(
        "DROP r0> tcp 10.1.0.1:4800 > 10.1.0.2:3800 SYN len 60 by inet t sub rule 1 (handle {web}) ct new"
    );
    ensure!(
        after_time(&line)? == expected,
        "{line}\nexpected {expected}"
    );
    let below = fwtrace.next_line()?;
    ensure!(below.starts_with("    "), "{below:?}");
    ensure!(
        words(&below) == "tcp dport 3800 counter drop comment \"block web\"",
        "{below}"
    );

    udp(&net, A, R, true, (4801, 3801));
    let line = fwtrace.next_line()?;
    let expected = format!(
        "REJECT r0> udp [fd01::1]:4801 > [fd01::2]:3801 len 55 by inet t in rule 3 (handle {dns}) ct new"
    );
    ensure!(
        after_time(&line)? == expected,
        "{line}\nexpected {expected}"
    );
    let below = fwtrace.next_line()?;
    ensure!(
        words(&below).starts_with("udp dport 3801 counter reject"),
        "{below}"
    );

    udp(&net, A, B, false, (4802, 3802));
    let line = fwtrace.next_line()?;
    let rest = after_time(&line)?;
    ensure!(
        rest.starts_with(
            "DROP r0>r1 udp 10.1.0.1:4802 > 10.2.0.1:3802 len 35 by inet t fw policy drop (2 rules, none "
        ) && rest.ends_with("ct new"),
        "{line}"
    );

    let end = fwtrace.interrupt()?;
    ensure!(end.status.success(), "{}", end.stderr);
    ensure!(end.stdout.len() == 5, "{:#?}", end.stdout);
    // Stderr is talk: the account and the top rules.
    let summary = end.stderr.lines().find(|l| l.contains(" seen"));
    let summary = summary.with_context(|| format!("no summary: {}", end.stderr))?;
    ensure!(
        // What the kernel drops for other reasons (multicast that nobody wants) is filtered out.
        summary.contains(" drops seen: 3 shown, ") && summary.ends_with(" filtered out, 0 lost"),
        "{summary}"
    );
    for rule in [
        format!("1 inet t sub rule 1 (handle {web})"),
        format!("1 inet t in rule 3 (handle {dns})"),
        "1 inet t fw policy drop".to_owned(),
    ] {
        ensure!(
            end.stderr.lines().any(|l| words(l).starts_with(&rule)),
            "{rule} is not in\n{}",
            end.stderr
        );
    }
    Ok(())
}

#[test]
fn quiet_and_verbose() -> Result<()> {
    let net = Net::routed()?;
    nft::load(&net.r, RULES)?;
    let mut fwtrace = Fwtrace::start_as(Some(&net.r), &["-q"])?;
    udp(&net, A, R, false, (4803, 3801));
    fwtrace.next_line()?;
    let end = fwtrace.interrupt()?;
    ensure!(end.stderr.is_empty(), "{}", end.stderr);

    let mut fwtrace = Fwtrace::start_as(Some(&net.r), &["-v"])?;
    udp(&net, A, R, false, (4803, 3801));
    fwtrace.next_line()?;
    let end = fwtrace.interrupt()?;
    let said = words(&end.stdout.join("\n"));
    ensure!(said.contains("evidence kernel-stack, exact"), "{said}");
    ensure!(said.contains("hook input"), "{said}");
    Ok(())
}

#[test]
fn names_from_the_kernel_cannot_steer_the_terminal() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0\n\
         udp dport 3803 counter drop comment \"a\u{1b}[2Jb\"\n}\n}",
    )?;
    let mut fwtrace = Fwtrace::start_as(Some(&net.r), &[])?;
    udp(&net, A, R, false, (4804, 3803));
    fwtrace.next_line()?;
    let below = fwtrace.next_line()?;
    ensure!(below.contains("udp dport 3803"), "{below:?}");
    ensure!(!below.contains('\u{1b}'), "{below:?}");
    Ok(())
}
