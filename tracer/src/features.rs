//! `fwtrace features`: what this machine allows, which source names the rule, and what the missing abilities cost.

use std::io::{self, Write};
use std::path::Path;

use fwtrace_abi::{Layout, SITE_POLICY, SITE_RULE, Site};
use serde::Serialize;

use crate::bpf::calibrate::Calibrator;
use crate::bpf::load::Programs;
use crate::event::{Confidence, EvidenceSource, VERSION};
use crate::kernel::caps::{effective, missing_from};
use crate::kernel::layout::{Feature, resolve};
use crate::kernel::reasons::Reasons;
use crate::kernel::symbols::Symbols;
use crate::kernel::types::{BTF_DIR, KernelTypes};
use crate::output::error_text;
use crate::trace::probe;

/// SKB_NOT_DROPPED_YET and SKB_CONSUMED (include/net/dropreason-core.h, v6.18).
const NOT_DROPS: u32 = 1;

/// Prints the features to `out`. What is missing is no error.
///
/// # Errors
/// What writing to `out` reports.
pub fn run(json: bool, out: &mut impl Write) -> io::Result<()> {
    let report = Report::probe();
    if json {
        report.json(out)
    } else {
        report.text(out)
    }
}

/// An ability of the machine.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Ability {
    name: &'static str,
    available: bool,
    /// What it gives.
    gives: &'static str,
    /// What its absence costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<&'static str>,
    /// How it is there, or why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// What was found.
#[derive(Debug)]
struct Report {
    abilities: Vec<Ability>,
    /// What will name the rule.
    source: Option<(EvidenceSource, Confidence)>,
    /// Drop reasons that `--reason` knows.
    reasons: Vec<String>,
}

impl Report {
    fn probe() -> Self {
        let mut abilities = vec![capabilities()];
        let types = KernelTypes::load(Path::new(BTF_DIR));
        abilities.push(Ability {
            name: "btf",
            available: types.is_ok(),
            gives: "where the kernel keeps what fwtrace reads",
            cost: types
                .is_err()
                .then_some("fwtrace cannot run on this kernel"),
            detail: types.as_ref().err().map(ToString::to_string),
        });
        let Ok(types) = types else {
            return Self {
                abilities,
                source: None,
                reasons: Vec::new(),
            };
        };
        let (layout, missing) = resolve(&types);
        abilities.extend(Feature::ALL.iter().map(|&feature| {
            let mut lacks: Vec<String> = missing
                .iter()
                .filter(|missing| missing.feature == feature)
                .map(|missing| missing.reason.clone())
                .collect();
            // Fields of one missing type have one reason.
            lacks.dedup();
            Ability {
                name: feature.name(),
                available: lacks.is_empty(),
                gives: feature.gives(),
                cost: (!lacks.is_empty()).then(|| feature.cost()),
                detail: (!lacks.is_empty()).then(|| lacks.join("; ")),
            }
        }));
        let reasons: Vec<String> = Reasons::load(&types)
            .unwrap_or_default()
            .iter()
            // The first two are no drops.
            .filter(|(value, _)| *value > NOT_DROPS)
            .map(|(_, name)| name.to_owned())
            .collect();
        abilities.push(Ability {
            name: "drop-reasons",
            available: !reasons.is_empty(),
            gives: "why a packet was dropped, if not by the firewall",
            cost: reasons
                .is_empty()
                .then_some("drops by the firewall are told apart by where they happen"),
            detail: None,
        });
        drop(types);
        abilities.push(trace());
        let source = probe_bpf(&layout, &mut abilities);
        Self {
            abilities,
            source,
            reasons,
        }
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let width = self
            .abilities
            .iter()
            .map(|a| a.name.len())
            .max()
            .unwrap_or(0);
        for ability in &self.abilities {
            let Ability { name, gives, .. } = ability;
            let there = if ability.available { "yes" } else { "no " };
            write!(out, "{name:width$}  {there}  {gives}")?;
            if let Some(cost) = ability.cost {
                write!(out, "; not available: {cost}")?;
            }
            if let Some(detail) = &ability.detail {
                write!(out, " ({detail})")?;
            }
            writeln!(out)?;
        }
        writeln!(out)?;
        let computed = "evaluator (computed)";
        match self.source {
            Some((EvidenceSource::Engine, _)) => {
                writeln!(out, "Rules of nf_tables are named by: {computed}")?;
            }
            Some((source, confidence)) => writeln!(
                out,
                "Rules of nf_tables are named by: {} ({}), else {computed}",
                source.as_str(),
                confidence.as_str()
            )?,
            None => writeln!(out, "fwtrace cannot show drops here")?,
        }
        let counters = self.abilities.iter().any(|ability| {
            ability.name == EvidenceSource::KernelCounters.as_str() && ability.available
        });
        if self.source.is_some() && counters {
            writeln!(
                out,
                "Rules of iptables-legacy: kernel-counters (exact), else {computed}"
            )?;
        }
        if !self.reasons.is_empty() {
            let count = self.reasons.len();
            writeln!(out, "Drop reasons for --reason: {count}, --json lists them")?;
        }
        Ok(())
    }

    fn json(&self, out: &mut impl Write) -> io::Result<()> {
        #[derive(Serialize)]
        #[serde(tag = "type", rename_all = "kebab-case")]
        enum Object<'a> {
            Feature(&'a Ability),
            Source {
                source: Option<EvidenceSource>,
                confidence: Option<Confidence>,
            },
            Reasons {
                names: &'a [String],
            },
        }
        #[derive(Serialize)]
        struct Line<'a> {
            v: u32,
            #[serde(flatten)]
            object: Object<'a>,
        }
        let abilities = self.abilities.iter().map(Object::Feature);
        let rest = [
            Object::Source {
                source: self.source.map(|(source, _)| source),
                confidence: self.source.map(|(_, confidence)| confidence),
            },
            Object::Reasons {
                names: &self.reasons,
            },
        ];
        for object in abilities.chain(rest) {
            serde_json::to_writer(&mut *out, &Line { v: VERSION, object })?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

fn capabilities() -> Ability {
    let lacks = match effective() {
        Ok(effective) => missing_from(&effective)
            .iter()
            .map(|need| format!("{} {}", need.capability, need.what_for))
            .collect(),
        Err(err) => vec![err.to_string()],
    };
    Ability {
        name: "capabilities",
        available: lacks.is_empty(),
        gives: "the permission to look",
        cost: (!lacks.is_empty()).then_some("run it with sudo"),
        detail: (!lacks.is_empty()).then(|| format!("missing: {}", lacks.join(", "))),
    }
}

/// What `--trace` would find.
fn trace() -> Ability {
    let probed = probe::probe();
    let detail = match &probed {
        Ok(reach) => match &reach.legacy {
            Ok(()) => None,
            Err(error) => Some(format!("but not of iptables-legacy: {}", error_text(error))),
        },
        Err(error) => Some(error_text(error)),
    };
    Ability {
        name: "trace",
        available: probed.is_ok(),
        gives: "--trace: the kernel's own trace of a packet's way, exact in every engine",
        cost: probed.is_err().then_some("--trace cannot be used"),
        detail,
    }
}

/// Loads the programs and calibrates as a live run does, and lets go of both.
fn probe_bpf(
    layout: &Layout,
    abilities: &mut Vec<Ability>,
) -> Option<(EvidenceSource, Confidence)> {
    let probed = Programs::load(layout).and_then(|mut programs| {
        let learnt = Calibrator::new(&mut programs)?.calibrate(&mut programs);
        programs.attach("drops")?;
        Ok(learnt)
    });
    abilities.push(Ability {
        name: "bpf",
        available: probed.is_ok(),
        gives: "drops as they happen",
        cost: probed.is_err().then_some("fwtrace cannot show drops here"),
        detail: probed.as_ref().err().map(|err| error_text(err)),
    });
    let learnt = match &probed {
        Ok(Ok(sites)) if sites.is_empty() => Err("calibration taught nothing".to_owned()),
        Ok(Ok(sites)) => Ok(describe(sites)),
        Ok(Err(err)) => Err(error_text(err)),
        Err(_) => Err("there is no BPF program to read it".to_owned()),
    };
    let name = Feature::KernelStack.name();
    let ability = abilities.iter_mut().find(|ability| ability.name == name);
    let exact = match (ability, learnt) {
        // The layout lacks something already.
        (Some(ability), _) if !ability.available => false,
        (Some(ability), Ok(detail)) => {
            ability.detail = Some(detail);
            true
        }
        (Some(ability), Err(why)) => {
            ability.available = false;
            ability.cost = Some(Feature::KernelStack.cost());
            ability.detail = Some(why);
            false
        }
        (None, _) => false,
    };
    probed.as_ref().ok()?;
    Some(if exact {
        (EvidenceSource::KernelStack, Confidence::Exact)
    } else {
        (EvidenceSource::Engine, Confidence::Engine)
    })
}

/// `nft_do_chain+0x1a0: rule in slot 21`, and so on for each.
fn describe(sites: &[Site]) -> String {
    let symbols = Symbols::load(&["nft_do_chain"]).unwrap_or_default();
    let sites = sites.iter().map(|site| {
        let place = match symbols.find(site.location) {
            Some((function, offset)) => format!("{function}+{offset:#x}"),
            None => format!("{:#x}", site.location),
        };
        let what = match site.kind {
            SITE_RULE if site.next != 0 => "the rule after the dropping one",
            SITE_RULE => "the rule",
            SITE_POLICY => "the chain's end",
            _ => "nothing",
        };
        format!("{place}: {what} in slot {}", site.rule_slot)
    });
    sites.collect::<Vec<_>>().join(", ")
}
