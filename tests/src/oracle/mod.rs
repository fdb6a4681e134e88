//! The differential harness: random rulesets and packets aimed at them, sent for real; what the
//! kernel's trace says of each drop is held against what fwtrace says.
//!
//! | module | subject |
//! |---|---|
//! | [`generate`] | random cases; [`nft_rules`] and [`xt_rules`] their rulesets, [`aim`] their packets |
//! | [`case`] | a case as it is kept and run again |
//! | [`ground`] | the namespaces a case is run in, with fwtrace watching |
//! | [`truth`] | the kernel's own word: nftrace and legacy TRACE lines |
//! | [`tally`] | its word where TRACE lines go to fwtrace: counters |
//! | [`cut`] | packets that a match may drop by itself, which no trace tells |
//! | [`compare`] | its word against fwtrace's |
//! | [`shrink`] | the smallest case that still shows what a case shows |
//! | [`doubt`] | whether an answer may be one of several |
//! | [`report`] | the table, and the cases that are kept |

pub mod aim;
pub mod case;
pub mod compare;
pub mod cut;
pub mod doubt;
pub mod flow;
pub mod generate;
pub mod ground;
pub mod legacy;
pub mod nft_match;
pub mod nft_rules;
pub mod nft_set;
pub mod packet;
pub mod random;
pub mod report;
pub mod send;
pub mod shrink;
pub mod tally;
pub mod truth;
pub mod xt_match;
pub mod xt_rules;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::oracle::case::Case;
use crate::oracle::generate::Kind;
use crate::oracle::ground::{Ground, Watch};
use crate::oracle::random::Random;
use crate::oracle::report::Report;

/// Packets of a case.
const PACKETS: usize = 60;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many packets.
    pub packets: usize,
    /// Where the random numbers start.
    pub seed: u64,
    /// A kept case, or a directory of them, instead of random ones.
    pub replay: Option<PathBuf>,
    /// Make the kept case smaller, and keep that beside it.
    pub shrink: bool,
    /// Where cases are kept that show something wrong.
    pub cases: PathBuf,
    /// Only cases of this kind.
    pub kind: Option<Kind>,
    /// Falsify every so manieth answer of fwtrace: each must be found.
    pub falsify: Option<usize>,
}

/// The grounds, made when the first case needs them.
#[derive(Debug, Default)]
struct Grounds {
    plain: Option<Ground>,
    legacy: Option<Ground>,
    traced: Option<Ground>,
}

impl Grounds {
    fn place(&mut self, watch: Watch) -> &mut Option<Ground> {
        match watch {
            Watch::Plain => &mut self.plain,
            Watch::Legacy => &mut self.legacy,
            Watch::LegacyTraced => &mut self.traced,
        }
    }

    fn get(&mut self, watch: Watch) -> Result<&mut Ground> {
        let ground = self.place(watch);
        match ground {
            Some(ground) => Ok(ground),
            None => Ok(ground.insert(Ground::new(watch)?)),
        }
    }

    /// Ends one; how many drops fwtrace has lost there, by its own account. A new one is made when it is needed.
    fn end(&mut self, watch: Watch) -> Result<u64> {
        self.place(watch).take().map_or(Ok(0), Ground::end)
    }
}

/// Runs it; what was found.
///
/// # Errors
/// A ground cannot be made, or a case cannot be written.
pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report::default();
    let mut grounds = Grounds::default();
    if let Some(path) = &options.replay {
        for path in kept(path)? {
            let mut case = Case::read(&path)?;
            if options.shrink {
                let ground = grounds.get(watch(&case))?;
                case = shrink::shrink(ground, &case)?;
                case.name += "-small";
            }
            judge(options, &mut grounds, &mut case, &mut report)?;
        }
    } else {
        let mut seeds = Random::new(options.seed);
        while report.packets < options.packets {
            // Each case has a sequence of its own: it is the same whatever came before.
            let mut random = seeds.split();
            let any = Kind::any(&mut random);
            let kind = options.kind.unwrap_or(any);
            let name = format!("{:x}-{}", options.seed, report.cases + report.failed);
            let packets = PACKETS.min(options.packets - report.packets);
            let mut case = generate::case(&mut random, kind, name, packets);
            judge(options, &mut grounds, &mut case, &mut report)?;
        }
    }
    for watch in [Watch::Plain, Watch::Legacy, Watch::LegacyTraced] {
        report.lost += grounds.end(watch)?;
    }
    Ok(report)
}

/// The cases of a directory, by name; a file is one itself.
fn kept(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = path.read_dir()?.map(|entry| Ok(entry?.path()));
    let mut all = entries.collect::<Result<Vec<_>>>()?;
    all.retain(|path| path.extension().is_some_and(|e| e == "json"));
    all.sort();
    ensure!(!all.is_empty(), "no cases in {}", path.display());
    Ok(all)
}

/// Who watches a case.
fn watch(case: &Case) -> Watch {
    match (case.has_legacy(), case.traced) {
        (false, _) => Watch::Plain,
        (true, false) => Watch::Legacy,
        (true, true) => Watch::LegacyTraced,
    }
}

/// Runs one case and keeps it if something is wrong.
fn judge(
    options: &Options,
    grounds: &mut Grounds,
    case: &mut Case,
    report: &mut Report,
) -> Result<()> {
    let watch = watch(case);
    let mut result = grounds.get(watch)?.run(case, options.falsify);
    if result.is_err() {
        // R may have sent something by itself between two looks at counters. What is left of the
        // case must not be taken for another's.
        // It has failed already.
        let _ = grounds.end(watch);
        result = grounds.get(watch)?.run(case, options.falsify);
    } else if result.as_ref().is_ok_and(|outcome| outcome.misses_events()) {
        // Drops that fwtrace has lost and says so are no wrong answers.
        let lost = grounds.end(watch)?;
        if lost > 0 {
            report.lost += lost;
            result = grounds.get(watch)?.run(case, options.falsify);
        }
    }
    match result {
        Ok(outcome) => {
            report.add(case, &outcome);
            if report::is_kept(case, &outcome) {
                let path = report::keep(&options.cases, case, &outcome)?;
                if report::is_bad(case, &outcome) {
                    crate::report(&format!("oracle: wrong: {}", path.display()));
                }
            }
        }
        Err(error) => {
            report.failed += 1;
            report.packets += case.packets.len();
            let path = report::keep_failed(&options.cases, case, &error)?;
            crate::report(&format!(
                "oracle: not judged: {}: {error:#}",
                path.display()
            ));
            let _ = grounds.end(watch);
        }
    }
    Ok(())
}
