//! The way to the rule, and the accepting rule that was nearly met.

use anyhow::{Result, ensure};
use e2e::fwtrace::Fwtrace;
use e2e::net::{Net, Place};
use e2e::nft;
use serde_json::json;

use crate::support::{end_well, udp};

use Place::{A, R};

#[test]
fn path_walk_and_nearest_miss_are_told() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { chain in { type filter hook input priority 0; policy drop;\n\
         tcp dport 22 accept\nip saddr 10.1.0.0/24 jump sub\n\
         iifname \"r1\" udp dport 3971 accept\n}\nchain sub { udp dport 9 drop\n}\n}",
    )?;
    let listed = nft::list(&net.r)?;
    let handle = |chain: &str, number| {
        let mut rules = listed.rules.iter();
        let rule = rules.find(|rule| rule.chain == chain && rule.number == number);
        rule.map(|rule| rule.handle)
    };
    let mut fwtrace = Fwtrace::start(&net.r, &["-vv"])?;
    udp(&net, A, R, false, (4971, 3971));
    let event = fwtrace.drop_to_port(3971)?.json;
    ensure!(
        event["path"]
            == json!([{"table": "t", "chain": "in", "number": 2, "handle": handle("in", 2),
                "verdict": "jump sub"}]),
        "{event}"
    );
    let miss = &event["nearest_miss"];
    ensure!(miss["rule"]["handle"] == json!(handle("in", 3)), "{event}");
    ensure!(
        miss["misses"] == json!(["wanted iifname \"r1\", packet came in on \"r0\""]),
        "{event}"
    );
    let phase = &event["walk"][0];
    ensure!(phase["chain"] == "in" && phase["tried"] == 4, "{event}");
    ensure!(phase["verdict"] == "policy drop", "{event}");
    let results: Vec<_> = phase["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| step["result"].as_str().unwrap_or_default())
        .collect();
    ensure!(
        results == ["missed", "matched", "missed", "missed"],
        "{event}"
    );
    ensure!(event["evidence"].get("disagreement").is_none(), "{event}");
    end_well(fwtrace)?;

    // The same answer without the kernel's evidence, and said to be computed.
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
    udp(&net, A, R, false, (4972, 3971));
    let event = fwtrace.drop_to_port(3971)?.json;
    ensure!(event["policy"]["chain"] == "in", "{event}");
    ensure!(event["evidence"]["source"] == "evaluator", "{event}");
    ensure!(event["evidence"]["confidence"] == "computed", "{event}");
    end_well(fwtrace)
}

/// Kernels differ in what is outside a set with a catch-all element; fwtrace asks the one that runs.
#[test]
fn outside_a_set_of_everything_is_what_the_kernel_says() -> Result<()> {
    let net = Net::routed()?;
    nft::load(
        &net.r,
        "table inet t { set s { type inet_service; elements = { * }\n}
         chain in { type filter hook input priority 0
         udp dport 3973 udp dport != @s counter drop comment \"outside\"
         udp dport 3973 counter drop comment \"inside\"\n}\n}",
    )?;
    let mut fwtrace = Fwtrace::start(&net.r, &["--evidence", "evaluator"])?;
    udp(&net, A, R, false, (4973, 3973));
    let event = fwtrace.drop_to_port(3973)?.json;
    let listed = nft::list(&net.r)?;
    let hit = listed.rules.iter().find(|rule| rule.packets == Some(1));
    let hit = hit.and_then(|rule| rule.comment.as_deref());
    ensure!(hit.is_some(), "scenario: {listed:?}");
    ensure!(event["rule"]["comment"].as_str() == hit, "{hit:?}: {event}");
    ensure!(event["evidence"]["confidence"] == "computed", "{event}");
    end_well(fwtrace)
}
