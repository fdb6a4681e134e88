//! Traces in the words of events: rules by number and handle, verdicts as nft writes them.

use std::sync::Arc;

use fwtrace_abi::{NAME_MAX, RULE_POLICY, RULE_RULE, RuleEvidence};
use zerocopy::FromZeros;

use super::{
    assemble::{Did, Dropped, Step},
    lines::{Entry, Logged},
};
use crate::{
    event::PathStep,
    ruleset::{
        expr::Verdict,
        model::{Chain, Ruleset, Table},
    },
    xtables::{
        legacy::{self, Drops, Jump},
        targets::{Fate, Target},
    },
};

/// What the trace says about the rule, as the kernel's stack would have said it; `None`: the rule is not in this ruleset.
pub fn evidence(dropped: &Dropped, ruleset: &Ruleset) -> Option<RuleEvidence> {
    let last = dropped.steps.last()?;
    let (table, chain) = find(last, ruleset)?;
    let mut evidence = RuleEvidence::new_zeroed();
    match last.did {
        Did::Rule(handle, _) => {
            let rule = chain.rules.iter().find(|rule| rule.handle == handle)?;
            evidence.kind = RULE_RULE;
            evidence.rule_handle = handle;
            evidence.number = rule.number;
        }
        Did::Policy(_) => {
            evidence.kind = RULE_POLICY;
            evidence.number = u32::try_from(chain.rules.len()).ok()?;
        }
    }
    evidence.table_handle = table.handle;
    evidence.chain_handle = chain.handle;
    let base = table.chain(&dropped.base_chain);
    evidence.base_chain_handle = base.map_or(0, |base| base.handle);
    evidence.family = u8::from(last.family).into();
    evidence.table = name(&last.table);
    evidence.chain = name(&last.chain);
    Some(evidence)
}

/// NUL-terminated, cut to fit.
fn name(text: &str) -> [u8; NAME_MAX] {
    let mut bytes = [0; NAME_MAX];
    for (to, from) in bytes.iter_mut().zip(text.bytes().take(NAME_MAX - 1)) {
        *to = from;
    }
    bytes
}

fn find<'a>(step: &Step, ruleset: &'a Ruleset) -> Option<(&'a Table, &'a Chain)> {
    let (_, table) = ruleset.table_named(step.family, &step.table)?;
    Some((table, table.chain(&step.chain)?))
}

/// Everything that the packet matched, in order, the last one dropping.
pub fn path(dropped: &Dropped, ruleset: &Ruleset) -> Arc<[PathStep]> {
    let step = |step: &Step| {
        let (handle, verdict) = match &step.did {
            Did::Rule(handle, verdict) => (Some(*handle), verdict),
            Did::Policy(drops) => {
                let verdict = if *drops {
                    "policy drop"
                } else {
                    "policy accept"
                };
                return path_step(&step.table, &step.chain, None, None, verdict);
            }
        };
        let found = find(step, ruleset);
        let rule = found.and_then(|(_, chain)| {
            let mut rules = chain.rules.iter();
            rules.find(|rule| Some(rule.handle) == handle)
        });
        // The trace calls a rejection a drop.
        let words = match verdict.code {
            Verdict::DROP if rule.is_some_and(|rule| rule.is_reject()) => "reject".to_owned(),
            _ => words(verdict),
        };
        let number = rule.map(|rule| rule.number);
        path_step(&step.table, &step.chain, number, handle, &words)
    };
    dropped.steps.iter().map(step).collect()
}

fn path_step(
    table: &str,
    chain: &str,
    number: Option<u32>,
    handle: Option<u64>,
    verdict: &str,
) -> PathStep {
    PathStep {
        table: table.into(),
        chain: chain.into(),
        number,
        handle,
        verdict: verdict.into(),
    }
}

/// What a target does with the packet; its name where that depends.
fn target_word(target: &Target) -> &str {
    match target.fate() {
        Fate::Continues => "continue",
        Fate::Accepted => "accept",
        Fate::Dropped if matches!(target, Target::Reject(_)) => "reject",
        Fate::Dropped => "drop",
        Fate::Queued => "queue",
        Fate::Unknown => target.name(),
    }
}

/// A verdict as nft writes it.
fn words(verdict: &Verdict) -> String {
    let chain = verdict.chain.as_deref().unwrap_or_default();
    match verdict.code {
        Verdict::CONTINUE | Verdict::BREAK => "continue".to_owned(),
        Verdict::JUMP => format!("jump {chain}"),
        Verdict::GOTO => format!("goto {chain}"),
        Verdict::RETURN => "return".to_owned(),
        code => match code & 0xff {
            Verdict::DROP => "drop".to_owned(),
            Verdict::ACCEPT => "accept".to_owned(),
            Verdict::STOLEN => "stolen".to_owned(),
            Verdict::QUEUE => format!("queue to {}", code >> 16),
            other => format!("verdict {other}"),
        },
    }
}

/// The rule of ip_tables that an entry is: its chain, and its index there; no index for the chain's end.
pub fn legacy_rule<'a>(
    entry: &Entry,
    table: &'a legacy::Table,
) -> Option<(&'a legacy::Chain, Option<usize>)> {
    let (_, chain) = table.chain(&entry.chain)?;
    let rules = u32::try_from(chain.rules.len()).ok()?;
    let rule = match entry.line().rule(rules) {
        Some(number) => Some(usize::try_from(number).ok()?.checked_sub(1)?),
        None => None,
    };
    Some((chain, rule))
}

/// What ip_tables does there; RETURN at the end of a user chain.
fn legacy_jump(chain: &legacy::Chain, rule: Option<usize>) -> Option<&Jump> {
    match rule {
        Some(at) => Some(&chain.rules.get(at)?.jump),
        None => Some(
            chain
                .base
                .as_ref()
                .map_or(&Jump::Return, |base| &base.policy),
        ),
    }
}

/// Whether a packet that comes to this entry is dropped there. What an extension does is not known to be that, but for REJECT.
pub fn legacy_drops(entry: &Entry, table: &legacy::Table) -> bool {
    let offset = legacy_rule(entry, table).and_then(|(chain, rule)| match rule {
        Some(at) => Some(chain.rules.get(at)?.offset),
        None => Some(chain.base.as_ref()?.offset),
    });
    let mut terminals = table.terminals(entry.hook).into_iter();
    let terminal = terminals.find(|terminal| Some(terminal.offset) == offset);
    terminal.is_some_and(|terminal| terminal.drops == Drops::Always)
}

/// Where the packet has come by, in order, the last one dropping. `table` gives the tables of its family.
pub fn legacy_path(
    logged: &Logged,
    table: impl Fn(&str) -> Option<Arc<legacy::Table>>,
) -> Arc<[PathStep]> {
    let step = |entry: &Entry| {
        let table = table(&entry.table);
        let found = table.as_ref().and_then(|table| {
            let (chain, rule) = legacy_rule(entry, table)?;
            Some((table, rule, legacy_jump(chain, rule)?))
        });
        let (number, verdict) = match found {
            Some((_, None, Jump::Return)) => (None, "return".to_owned()),
            Some((table, None, policy)) => {
                (None, format!("policy {}", legacy_words(policy, table)))
            }
            Some((table, Some(_), jump)) => (Some(entry.number), legacy_words(jump, table)),
            None => (Some(entry.number), "not known".to_owned()),
        };
        path_step(&entry.table, &entry.chain, number, None, &verdict)
    };
    logged.entries.iter().map(step).collect()
}

/// What a rule of ip_tables does, as nft would write it where that has a word.
fn legacy_words(jump: &Jump, table: &legacy::Table) -> String {
    let chain = |index: &usize| table.chains.get(*index).map_or("", |chain| &chain.name);
    match jump {
        Jump::Next => "continue".to_owned(),
        Jump::Accept => "accept".to_owned(),
        Jump::Drop => "drop".to_owned(),
        Jump::Queue => "queue".to_owned(),
        Jump::Return => "return".to_owned(),
        Jump::Chain(index) => format!("jump {}", chain(index)),
        Jump::Goto(index) => format!("goto {}", chain(index)),
        Jump::Target(target) => target_word(target).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netlink::legacy_trace::Kind,
        ruleset::{
            expr::{Data, Expr},
            model::{BaseChain, Family, Rule},
        },
        trace::headers::Headers,
        xtables,
    };

    fn verdict(code: i32, chain: Option<&str>) -> Verdict {
        Verdict {
            code,
            chain: chain.map(str::to_owned),
        }
    }

    fn ruleset() -> Ruleset {
        let rule = |handle, number, exprs| Rule {
            handle,
            number,
            exprs,
            ..Rule::default()
        };
        let does = |verdict| Expr::Immediate {
            dreg: 0,
            data: Data::Verdict(verdict),
        };
        let chain = |name: &str, handle, base, rules| Chain {
            name: name.to_owned(),
            handle,
            base,
            flags: 0,
            comment: None,
            userdata: Vec::new(),
            rules,
        };
        let base = BaseChain {
            kind: "filter".to_owned(),
            hook: 1,
            priority: 0,
            policy: 0,
            devices: Vec::new(),
            counters: None,
        };
        let sub = vec![
            rule(4, 1, vec![does(verdict(Verdict::DROP, None))]),
            rule(
                9,
                2,
                vec![Expr::Reject {
                    kind: 0,
                    code: Some(3),
                }],
            ),
        ];
        let jump = does(verdict(Verdict::JUMP, Some("sub")));
        Ruleset {
            generation: 3,
            tables: vec![Table {
                family: Family::Inet,
                name: "t".to_owned(),
                handle: 7,
                flags: 0,
                owner: None,
                comment: None,
                userdata: Vec::new(),
                chains: vec![
                    chain("sub", 1, None, sub),
                    chain("in", 2, Some(base), vec![rule(5, 1, vec![jump])]),
                ],
                sets: Vec::new(),
                objects: Vec::new(),
                flowtables: Vec::new(),
                iptables: false,
            }],
            problems: Vec::new(),
        }
    }

    fn dropped(steps: &[(&str, Did)]) -> Dropped {
        let step = |(chain, did): &(&str, Did)| Step {
            family: Family::Inet,
            table: "t".to_owned(),
            chain: (*chain).to_owned(),
            did: did.clone(),
        };
        Dropped {
            headers: headers(),
            base_chain: "in".to_owned(),
            steps: steps.iter().map(step).collect(),
        }
    }

    fn headers() -> Headers {
        Headers::of_packet(&[vec![0x45], vec![0; 30]].concat()).unwrap()
    }

    fn words(path: &[PathStep]) -> Vec<String> {
        let step = |s: &PathStep| {
            let number = s.number.map_or("-".to_owned(), |n| n.to_string());
            let handle = s.handle.map_or("-".to_owned(), |h| h.to_string());
            format!("{} {} {number} {handle} {}", s.table, s.chain, s.verdict)
        };
        path.iter().map(step).collect()
    }

    #[test]
    fn rules_have_numbers_and_rejections_are_told_from_drops() {
        let jump = Did::Rule(5, verdict(Verdict::JUMP, Some("sub")));
        let way = dropped(&[
            ("in", jump.clone()),
            ("sub", Did::Rule(9, verdict(Verdict::DROP, None))),
        ]);
        assert_eq!(
            words(&path(&way, &ruleset())),
            ["t in 1 5 jump sub", "t sub 2 9 reject"]
        );
        let named = evidence(&way, &ruleset()).unwrap();
        assert_eq!(
            (named.kind, named.number, named.rule_handle),
            (RULE_RULE, 2, 9)
        );
        assert_eq!((named.table_handle, named.chain_handle), (7, 1));
        assert_eq!((named.base_chain_handle, named.family), (2, 1));
        assert_eq!(&named.chain[..4], b"sub\0");
        let policy = dropped(&[("in", jump), ("in", Did::Policy(true))]);
        assert_eq!(words(&path(&policy, &ruleset()))[1], "t in - - policy drop");
        let named = evidence(&policy, &ruleset()).unwrap();
        assert_eq!(
            (named.kind, named.number, named.chain_handle),
            (RULE_POLICY, 1, 2)
        );
    }

    #[test]
    fn a_rule_that_is_gone_keeps_its_handle() {
        let gone = dropped(&[("sub", Did::Rule(77, verdict(Verdict::DROP, None)))]);
        assert_eq!(words(&path(&gone, &ruleset())), ["t sub - 77 drop"]);
        assert!(evidence(&gone, &ruleset()).is_none());
    }

    #[test]
    fn the_end_of_a_legacy_chain_is_told_from_a_rule_without_matches() {
        let rule = |number, jump| legacy::Rule {
            number,
            offset: number * 100,
            ip: legacy::Ip {
                src: [0, 0, 0, 0].into(),
                src_mask: [0, 0, 0, 0].into(),
                dst: [0, 0, 0, 0].into(),
                dst_mask: [0, 0, 0, 0].into(),
                iface_in: String::new(),
                iface_out: String::new(),
                proto: 0,
                tos: 0,
                flags: 0,
                inverted: 0,
            },
            matches: Vec::new(),
            jump,
            counters: Default::default(),
        };
        let base = legacy::Base {
            hook: 1,
            policy: Jump::Accept,
            offset: 900,
            counters: Default::default(),
        };
        let chain = |name: &str, base, rules| legacy::Chain {
            name: name.to_owned(),
            base,
            rules,
        };
        let table = Arc::new(legacy::Table {
            family: xtables::Family::V4,
            name: "filter".to_owned(),
            chains: vec![
                chain(
                    "INPUT",
                    Some(base),
                    vec![rule(1, Jump::Chain(1)), rule(2, Jump::Drop)],
                ),
                chain("UC", None, vec![rule(4, Jump::Return)]),
            ],
            hooks: [None, Some(0), None, None, None],
            size: 0,
            entries: 0,
            problems: Vec::new(),
        });
        let entry = |chain: &str, kind, number| Entry {
            hook: 1,
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            kind,
            number,
        };
        let way = [
            entry("INPUT", Kind::Policy, 1),
            entry("UC", Kind::Return, 2),
            entry("INPUT", Kind::Policy, 2),
        ];
        assert!(!legacy_drops(&way[0], &table) && !legacy_drops(&way[1], &table));
        assert!(legacy_drops(&way[2], &table));
        assert!(!legacy_drops(&entry("INPUT", Kind::Policy, 3), &table));
        let logged = Logged {
            headers: headers(),
            entries: way.to_vec(),
        };
        let path = legacy_path(&logged, |name| (name == "filter").then(|| table.clone()));
        assert_eq!(
            words(&path),
            [
                "filter INPUT 1 - jump UC",
                "filter UC - - return",
                "filter INPUT 2 - drop"
            ]
        );
    }
}
