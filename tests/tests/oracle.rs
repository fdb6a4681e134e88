//! The differential harness itself: it must find what is wrong, and nothing where nothing is.

use anyhow::{Result, ensure};
use e2e::oracle::{Options, case::Case, generate::Kind, run};

fn options(cases: &tempfile::TempDir, falsify: Option<usize>) -> Options {
    Options {
        packets: 240,
        seed: 7,
        replay: None,
        shrink: false,
        cases: cases.path().to_owned(),
        kind: Some(Kind::Nft),
        falsify,
    }
}

#[test]
fn finds_nothing_where_nothing_is_wrong() -> Result<()> {
    let cases = tempfile::tempdir()?;
    let report = run(&options(&cases, None))?;
    ensure!(report.drops > 50, "too few drops: {}", report.table());
    ensure!(!report.fails(), "{}", report.table());
    ensure!(cases.path().read_dir()?.next().is_none(), "a case is kept");
    Ok(())
}

#[test]
fn finds_every_falsified_answer_and_keeps_its_case() -> Result<()> {
    let cases = tempfile::tempdir()?;
    let report = run(&options(&cases, Some(9)))?;
    ensure!(report.falsified > 5, "{} falsified", report.falsified);
    ensure!(report.wrong() == report.falsified, "{}", report.table());
    // A kept case, run again as it is, is right.
    let kept = cases.path().read_dir()?.next();
    let path = kept.transpose()?.map(|entry| entry.path());
    let Some(path) = path else {
        anyhow::bail!("no case is kept");
    };
    ensure!(
        !Case::read(&path)?.packets.is_empty(),
        "a case without packets"
    );
    let again = Options {
        replay: Some(path),
        ..options(&cases, None)
    };
    let report = run(&again)?;
    ensure!(report.drops > 0 && !report.fails(), "{}", report.table());
    Ok(())
}

/// Each was wrong once: of fwtrace, or of the harness.
#[test]
fn cases_that_were_wrong_are_right() -> Result<()> {
    let cases = tempfile::tempdir()?;
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data/oracle");
    let again = Options {
        replay: Some(data.into()),
        ..options(&cases, None)
    };
    let report = run(&again)?;
    let kept = cases.path().read_dir()?.next().transpose()?;
    ensure!(
        report.drops > 0 && !report.fails() && kept.is_none(),
        "{}",
        report.table()
    );
    Ok(())
}
