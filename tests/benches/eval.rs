//! How many packets a second the evaluator walks through 1,000 rules on one core, and how many it answers from its cache. Prints, judges nothing.
#![expect(clippy::print_stdout, reason = "prints its findings")]

use std::{hint::black_box, sync::Arc, time::Instant};

use fwtrace::{
    eval::{
        cache::Cache,
        miss::Texts,
        outcome::{Decision, Known},
        packet::{Connection, Device, Fact, Packet, Tracking},
        program::Program,
        walk::Detail,
        world::World,
    },
    ruleset::{
        expr::{CmpOp, Data, Expr, PayloadBase, Verdict},
        model::{BaseChain, Chain, Counters, Family, Rule, Ruleset, Table},
        render::Names,
    },
};

/// Rules of the chain.
const RULES: u32 = 1000;
/// Seconds for each figure.
const SECONDS: f64 = 2.0;

fn payload(base: PayloadBase, offset: u32, len: u32) -> Expr {
    Expr::Payload {
        dreg: 1,
        base,
        offset,
        len,
    }
}

fn equals(data: &[u8]) -> Expr {
    Expr::Cmp {
        sreg: 1,
        op: CmpOp::Eq,
        data: data.to_vec(),
    }
}

fn verdict(code: i32) -> Expr {
    Expr::Immediate {
        dreg: 0,
        data: Data::Verdict(Verdict { code, chain: None }),
    }
}

/// `ct state established,related accept`, `iifname "lo" accept`, then rules of the kinds that firewalls are full of.
fn ruleset() -> Ruleset {
    let mut rules = vec![
        vec![
            Expr::Ct {
                dreg: 1,
                key: 0,
                direction: None,
            },
            Expr::Bitwise {
                sreg: 1,
                sreg2: None,
                dreg: 1,
                len: 4,
                op: 0,
                mask: 6_u32.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
                data: Vec::new(),
            },
            Expr::Cmp {
                sreg: 1,
                op: CmpOp::Neq,
                data: vec![0; 4],
            },
            verdict(1),
        ],
        vec![
            Expr::Meta { dreg: 1, key: 6 },
            equals(b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            verdict(1),
        ],
    ];
    for number in rules.len() as u32..RULES {
        let [.., b, c] = number.to_be_bytes();
        let mut exprs = vec![Expr::Meta { dreg: 1, key: 16 }, equals(&[6])];
        if number % 2 == 0 {
            exprs.extend([
                payload(PayloadBase::Network, 12, 4),
                equals(&[192, 168, b, c]),
            ]);
        }
        exprs.extend([
            payload(PayloadBase::Transport, 2, 2),
            equals(&(10_000 + number as u16).to_be_bytes()),
            Expr::Counter(Counters::default()),
            verdict(i32::from(number % 3 == 0)),
        ]);
        rules.push(exprs);
    }
    let rules = (1..).zip(rules).map(|(number, exprs)| Rule {
        handle: u64::from(number) + 1,
        number,
        exprs,
        ..Rule::default()
    });
    let chain = Chain {
        name: "in".to_owned(),
        handle: 1,
        base: Some(BaseChain {
            kind: "filter".to_owned(),
            hook: 1,
            priority: 0,
            policy: 0,
            devices: Vec::new(),
            counters: None,
        }),
        flags: 1,
        comment: None,
        userdata: Vec::new(),
        rules: rules.collect(),
    };
    Ruleset {
        generation: 1,
        tables: vec![Table {
            family: Family::Inet,
            name: "bench".to_owned(),
            handle: 1,
            flags: 0,
            owner: None,
            comment: None,
            userdata: Vec::new(),
            chains: vec![chain],
            sets: Vec::new(),
            objects: Vec::new(),
            flowtables: Vec::new(),
            iptables: false,
        }],
        problems: Vec::new(),
    }
}

/// SYNs from many ports and hosts to a few ports, none of which a rule names: each walks all rules.
fn packets() -> Vec<Vec<u8>> {
    (0..1024_u16)
        .map(|number| {
            let mut packet = vec![0; 40];
            packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
            packet[8..10].copy_from_slice(&[64, 6]);
            packet[12..20].copy_from_slice(&[10, 1, 0, (number % 64) as u8, 10, 1, 0, 2]);
            packet[20..22].copy_from_slice(&(20_000 + number).to_be_bytes());
            packet[22..24].copy_from_slice(&(80 + number % 16).to_be_bytes());
            packet[32..34].copy_from_slice(&[0x50, 2]);
            packet
        })
        .collect()
}

fn packet(bytes: &[u8]) -> Packet<'_> {
    Packet {
        bytes,
        len: bytes.len() as u32,
        pf: 2,
        hook: 1,
        protocol: 0x0800,
        iif: Fact::Known(Device {
            index: 2,
            name: "eth0",
        }),
        oif: Fact::Absent,
        mark: Fact::Known(0),
        tracking: Tracking::Connection(Connection {
            info: 2,
            ..Connection::default()
        }),
        ..Packet::default()
    }
}

/// Calls a second.
fn rate(mut call: impl FnMut(usize)) -> f64 {
    let start = Instant::now();
    let mut calls = 0_usize;
    loop {
        for _ in 0..256 {
            call(calls);
            calls += 1;
        }
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed > SECONDS {
            return calls as f64 / elapsed;
        }
    }
}

fn main() {
    let ruleset = ruleset();
    let start = Instant::now();
    let program = Arc::new(Program::new(Some(&ruleset), &[]));
    println!("compile {RULES} rules: {:.1?}", start.elapsed());
    let bytes = packets();
    let world = World::default();
    let packets: Vec<Packet<'_>> = bytes.iter().map(|bytes| packet(bytes)).collect();
    let first = program.evaluate(&packets[0], &world);
    assert!(matches!(first.ends[0].decision, Decision::Policy(_)));

    let uncached = rate(|call| {
        black_box(program.evaluate(&packets[call % packets.len()], &world));
    });
    println!("uncached, all {RULES} rules: {uncached:.0} evaluations/s");

    let mut cache = Cache::new(program.clone());
    let cached = rate(|call| {
        black_box(cache.evaluate(&packets[call % packets.len()], &world));
    });
    let (hits, misses) = cache.hits_and_misses();
    println!("cached: {cached:.0} evaluations/s, {hits} hits, {misses} misses");

    let names = Names::default();
    let texts = Texts {
        nft: Some(&ruleset),
        legacy: &[],
        names: &names,
    };
    let known = Known::default();
    for detail in [Detail::Brief, Detail::Full] {
        let explained = rate(|call| {
            let packet = &packets[call % packets.len()];
            black_box(program.explain(packet, &world, &texts, &known, detail));
        });
        println!("explained, {detail:?}: {explained:.0} walks/s");
    }
    let explained = rate(|call| {
        let packet = &packets[call % packets.len()];
        black_box(cache.explain(packet, &world, &texts, &known, Detail::Brief));
    });
    println!("explained, cached: {explained:.0} walks/s");
}
