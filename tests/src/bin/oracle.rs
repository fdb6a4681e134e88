//! `cargo xtask oracle`: see [`e2e::oracle`]. Needs root.
#![expect(clippy::print_stdout, reason = "prints its findings")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use e2e::oracle::{Options, generate::Kind, run};

/// `--packets N`, `--seed S`, `--replay FILE`, `--shrink`, `--cases DIR`, `--only KIND`.
fn options() -> Result<Options> {
    let mut options = Options {
        packets: 3000,
        seed: 1,
        replay: None,
        shrink: false,
        cases: PathBuf::from("target/oracle"),
        kind: None,
        falsify: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--shrink" {
            options.shrink = true;
            continue;
        }
        let value = args
            .next()
            .with_context(|| format!("{flag} takes a value"))?;
        match &*flag {
            "--packets" => options.packets = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--replay" => options.replay = Some(value.into()),
            "--cases" => options.cases = value.into(),
            "--only" => {
                options.kind = Some(match &*value {
                    "nft" => Kind::Nft,
                    "iptables-nft" => Kind::IptablesNft,
                    "nft+iptables-nft" => Kind::NftAndIptablesNft,
                    "legacy" => Kind::Legacy,
                    "nft+legacy" => Kind::NftAndLegacy,
                    other => bail!("no kind of case: {other}"),
                });
            }
            other => bail!("no such flag: {other}"),
        }
    }
    Ok(options)
}

fn main() -> Result<ExitCode> {
    let options = options()?;
    let started = Instant::now();
    let report = run(&options)?;
    println!("{}", report.table());
    let seconds = started.elapsed().as_secs_f64();
    let rate = report.packets as f64 / seconds;
    println!("seed {}, {seconds:.1} s, {rate:.0} packets/s", options.seed);
    Ok(if report.fails() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
