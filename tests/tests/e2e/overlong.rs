//! Extension headers of IPv6 that say that they are longer than there is room for: kernels differ, and the evaluator says what this one does.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use e2e::expect::at;
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::traffic;

use crate::support::end_well;

use Place::{A, R};

/// A match, the number of the first header, and what follows the IPv6 header.
const CASES: [(&str, u8, &[u8]); 12] = [
    ("hbh", 0, &[59, 1, 1, 4, 0, 0, 0, 0]),
    ("hbh ! --hbh-len 8", 0, &[59, 1, 1, 4, 0, 0, 0, 0]),
    ("hbh --hbh-opts 1,1", 0, &[59, 0, 1, 90, 0, 0, 0, 0]),
    ("hbh --hbh-opts 1", 0, &[59, 0, 1, 90, 0, 0, 0, 0]),
    ("dst", 60, &[59, 1, 1, 4, 0, 0, 0, 0]),
    ("rt", 43, &[59, 1, 0, 0, 0, 0, 0, 0]),
    ("ah", 51, &[59, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("ah --ahspi 2", 51, &[59, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
    (
        "ipv6header --header hop-by-hop,protocol",
        0,
        &[6, 1, 1, 4, 0, 0, 0, 0],
    ),
    (
        "ipv6header ! --header hop-by-hop --soft",
        0,
        &[59, 1, 1, 4, 0, 0, 0, 0],
    ),
    ("ipv6header --header hop-by-hop", 0, &[59]),
    ("ipv6header --header esp", 50, &[0]),
];

/// The case of this number, by its hop limit; behind them one rule for the rest.
fn rules() -> String {
    let mut rules = "*filter\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for (limit, (what, ..)) in (1..).zip(CASES) {
        rules += &format!("-A OUTPUT -m hl --hl-eq {limit} -m {what} -j DROP\n");
    }
    rules + "-A OUTPUT -d fd01::/16 -m hl --hl-lt 20 -j DROP\nCOMMIT\n"
}

/// Sends a packet of R's own with this hop limit.
fn send(net: &Net, limit: u8, next: u8, rest: &[u8]) -> Result<()> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (net.address(R, A, true), net.address(A, R, true))
    else {
        bail!("no IPv6 addresses");
    };
    let length = u16::try_from(rest.len())?.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, limit];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(rest);
    match net.r.run(|| traffic::ip_packet(dst.into(), &packet)) {
        // The firewall has refused it.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => bail!("scenario: {next}: {other:?}"),
    }
}

#[test]
fn what_the_kernel_does_with_headers_that_are_too_long_is_known() -> Result<()> {
    let net = Net::routed()?;
    let evaluator = &["--evidence", "evaluator"];
    let mut before = Fwtrace::start(&net.r, evaluator)?;
    net.r.command(&["ip6tables-nft-restore"], &rules())?;
    let mut behind = Fwtrace::start(&net.r, evaluator)?;
    let mut exact = Fwtrace::start(&net.r, &[])?;
    // With it the rules are read.
    send(&net, 19, 59, &[])?;
    for run in [&mut before, &mut behind, &mut exact] {
        ensure!(at(&run.next_drop()?.json, "rule.number") == CASES.len() + 1);
    }
    let mut missed = 0;
    for (limit, (what, next, rest)) in (1..).zip(CASES) {
        send(&net, limit, next, rest)?;
        let truth = exact.next_drop()?.json;
        ensure!(
            at(&truth, "evidence.confidence") == "exact",
            "{what}: {truth}"
        );
        let number = at(&truth, "rule.number");
        missed += usize::from(number != limit);
        for run in [&mut before, &mut behind] {
            let told = run.next_drop()?.json;
            let known = at(&told, "evidence.confidence") == "computed";
            ensure!(
                known && at(&told, "rule.number") == number,
                "{what}: {told}, not {number}"
            );
        }
    }
    ensure!(
        missed > 0 && missed < CASES.len(),
        "{missed} are not matched"
    );
    for run in [before, behind, exact] {
        end_well(run)?;
    }
    Ok(())
}
