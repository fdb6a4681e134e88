//! Rulesets compiled once per generation.

use std::{collections::HashMap, time::Duration};

use super::{
    code::{Code, Decided, Op},
    compile::Compiler,
    field::{DoubtKind, Reason},
    headers::{BRIDGE, INET, IPV4, IPV6, NETDEV},
    legacy,
    outcome::{ChainId, Fate, Outcome, RuleId, TableId},
    overlong::Overlong,
    packet::{Device, Packet},
    read::{Fields, Needs, Reader},
    run,
    sets::Lookup,
    world::World,
    write::{self, Kinds},
};
use crate::{
    ruleset::{
        expr::Verdict,
        model::{Family, ObjectState, Ruleset, Set, Table},
    },
    xtables,
};

/// Priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// Priorities at which addresses are translated, whatever those of the chains of type nat are.
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
/// `NF_NETDEV_EGRESS`.
const EGRESS: u8 = 1;

/// A hook's list of functions: ingress is one list, whatever the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HookKey {
    pf: u8,
    hook: u8,
}

impl HookKey {
    /// Of this number in family `pf`, as the kernel counts: ingress is 0 of netdev.
    pub(super) fn new(pf: u8, hook: u8) -> Self {
        Self { pf, hook }
    }

    pub(super) fn of(packet: &Packet<'_>) -> Self {
        match (packet.pf, packet.hook) {
            // `NF_INET_INGRESS`.
            (INET | IPV4 | IPV6, 5) => Self {
                pf: NETDEV,
                hook: 0,
            },
            (pf, hook) => Self { pf, hook },
        }
    }

    /// The family.
    pub(super) fn pf(self) -> u8 {
        self.pf
    }

    /// The device whose list it is, of family netdev; `None`: it is not known.
    pub(super) fn device<'a>(self, packet: &Packet<'a>) -> Option<Device<'a>> {
        let device = match self.hook {
            EGRESS => packet.oif,
            _ => packet.iif,
        };
        let known = device.known().filter(|device| !device.name.is_empty());
        known.filter(|_| self.pf == NETDEV)
    }

    /// At which priority the hook translates addresses.
    pub(super) fn translates(self) -> Option<i32> {
        match (self.pf, self.hook) {
            (IPV4 | IPV6, 0 | 3) => Some(NAT_DESTINATION),
            (IPV4 | IPV6, 1 | 4) => Some(NAT_SOURCE),
            _ => None,
        }
    }

    /// Family and hook: `NFPROTO_*`, `NF_INET_*`.
    pub(super) fn numbers(self) -> (u8, u8) {
        (self.pf, self.hook)
    }
}

/// What a chain is to its hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    /// Its chain.
    pub(super) chain: u32,
    pub(super) id: ChainId,
    /// As the ruleset says.
    pub(super) priority: i32,
    /// Chains of type nat: whether sources or destinations are translated.
    pub(super) nat: Option<bool>,
    /// Device names of netdev and inet ingress chains.
    pub(super) devices: Option<Vec<String>>,
    pub(super) inet_ingress: bool,
    /// Reads connection tracking's view before it is there.
    pub(super) early: bool,
    /// As early as connection tracking itself: which comes first is not known.
    pub(super) with_tracking: bool,
    /// Reads addresses before the hook translates them.
    pub(super) before_nat: bool,
    /// Its place among all that the hook calls, where the kernel has told that.
    pub(super) place: Option<usize>,
}

/// The base chains of a hook.
#[derive(Debug, Clone, Default)]
pub(super) struct Hook {
    pub(super) bases: Vec<Base>,
    /// The orders they can be in: indexes into `bases`.
    pub(super) orders: Vec<Vec<usize>>,
    /// There are more orders than that.
    pub(super) unordered: bool,
    /// What its rules may write.
    pub(super) writes: Kinds,
    /// Connection tracking may untrack packets between its chains.
    pub(super) untracks: bool,
}

/// A chain.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub(super) id: ChainId,
    pub(super) rules: Vec<Code>,
    /// Where its steps end.
    pub(super) end: u32,
    /// Of base chains.
    pub(super) policy: Option<Fate>,
}

/// Chains of a table by name.
pub(super) struct Jumps<'a>(HashMap<&'a str, u32>);

impl Jumps<'_> {
    /// What a verdict does.
    pub(super) fn decided(&self, verdict: &Verdict) -> Decided {
        let target = |make: fn(u32) -> Decided| {
            let name = verdict.chain.as_deref().unwrap_or_default();
            match self.0.get(name) {
                Some(chain) => make(*chain),
                None => Decided::Unknown(Reason::new(
                    DoubtKind::Missing,
                    format!("the chain {name} is not known"),
                )),
            }
        };
        match verdict.code {
            Verdict::DROP => Decided::End(Fate::Drop),
            Verdict::ACCEPT => Decided::End(Fate::Accept),
            Verdict::STOLEN => Decided::End(Fate::Stolen),
            Verdict::CONTINUE => Decided::Continue,
            Verdict::BREAK => Decided::Break,
            Verdict::RETURN => Decided::Return,
            Verdict::JUMP => target(Decided::Jump),
            Verdict::GOTO => target(Decided::Goto),
            // `NF_VERDICT_QBITS`, `NF_VERDICT_FLAG_QUEUE_BYPASS`.
            code if code >= 0 && code & 0xff == Verdict::QUEUE => Decided::End(Fate::Queue {
                number: (code >> 16) as u16,
                bypass: code & 0x8000 != 0,
            }),
            code => Decided::Unknown(Reason::new(
                DoubtKind::Missing,
                format!("the verdict {code} is not known"),
            )),
        }
    }
}

/// Sets and objects of a table by name.
pub(super) struct TableNames<'a> {
    table: &'a Table,
    /// The program's number of the table's first set.
    first_set: u32,
}

impl<'a> TableNames<'a> {
    pub(super) fn set(&self, name: &str) -> Option<(u32, &'a Set)> {
        let mut sets = self.table.sets.iter().enumerate();
        let (index, set) = sets.find(|(_, set)| set.name == name)?;
        Some((self.first_set + index as u32, set))
    }

    pub(super) fn object(&self, kind: u32, name: &str) -> Option<&'a ObjectState> {
        let mut objects = self.table.objects.iter();
        let object = objects.find(|object| object.kind == kind && object.name == name)?;
        Some(&object.state)
    }
}

/// The rulesets of a network namespace at one moment, ready to be evaluated.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub(super) fields: Fields,
    pub(super) ops: Vec<Op>,
    /// The expression that each step comes from.
    pub(super) exprs: Vec<u16>,
    pub(super) chains: Vec<Chain>,
    pub(super) sets: Vec<Lookup>,
    /// Of family netdev, whatever the device.
    pub(super) hooks: HashMap<HookKey, Hook>,
    /// Hooks of family netdev with the chains of one device, by number and device index; with the device's name.
    pub(super) devices: HashMap<(u8, u32), (String, Hook)>,
    /// In some hook the order of chains is not known, and matters.
    pub(super) tied: bool,
    /// How many rules there are.
    pub(super) rules: u64,
    lasts: Option<Duration>,
    pub(super) inverts_last: Option<bool>,
}

impl Program {
    /// Compiles the nf_tables ruleset and the legacy tables of a network namespace as they were read just now.
    pub fn new(nft: Option<&Ruleset>, legacy: &[xtables::legacy::Table]) -> Self {
        Self::aged(nft, legacy, Duration::ZERO)
    }

    /// The same with an nf_tables ruleset that was read `age` ago at most: elements of sets may have expired since. Evaluates drops as
    /// long as [`Program::lasts`] says.
    pub fn aged(nft: Option<&Ruleset>, legacy: &[xtables::legacy::Table], age: Duration) -> Self {
        let mut program = Self::default();
        let mut bases = Vec::new();
        for (index, table) in nft.iter().flat_map(|nft| nft.tables.iter()).enumerate() {
            program.table(index, table, age, &mut bases);
        }
        program.lasts = program.sets.iter().filter_map(|set| set.lasts).min();
        for (index, table) in legacy.iter().enumerate() {
            program.legacy(index, table, &mut bases);
        }
        for (key, registered) in bases {
            let hook = program.hooks.entry(key).or_default();
            hook.bases.push(registered);
        }
        program.rules = program
            .chains
            .iter()
            .map(|chain| chain.rules.len() as u64)
            .sum();
        let mut hooks = std::mem::take(&mut program.hooks);
        for (key, hook) in &mut hooks {
            program.order(hook);
            hook.untracks = key.pf == IPV6
                && hook
                    .bases
                    .iter()
                    .any(|base| base.early || base.with_tracking);
            let (chains, _) = program.reachable(hook.bases.iter().map(|base| base.chain));
            hook.writes = chains
                .iter()
                .map(|chain| program.writes(*chain))
                .fold(0, |a, b| a | b);
        }
        program.hooks = hooks;
        program.find_ties();
        program
    }

    /// Says what the kernel makes of `!= @set` where the set has a catch-all element; until then that is not known. `true`: it looks for
    /// that element before the inversion, and no packet is outside the set. `false`: behind it, and every packet is, as in kernels without
    /// "netfilter: nft_lookup: fix catchall element handling with inverted lookups" (July 2026; v6.18.44 has it).
    #[must_use]
    pub fn inverting_last(mut self, inverts_last: Option<bool>) -> Self {
        self.inverts_last = inverts_last;
        self
    }

    /// Says what the kernel does with extension headers that are too long; until then that is not known.
    #[must_use]
    pub fn reacting(mut self, overlong: Overlong) -> Self {
        self.fields.overlong = overlong;
        self
    }

    /// How long it holds from its making on: an element of a set that it takes to be there expires then. `None`: none does.
    pub fn lasts(&self) -> Option<Duration> {
        self.lasts
    }

    /// What it reads of the world; of the rest it need not know anything.
    pub fn needs(&self) -> Needs {
        self.fields.needs()
    }

    /// Every end that the packet's walk through its hook can have.
    pub fn evaluate(&self, packet: &Packet<'_>, world: &World) -> Outcome {
        let mut reader = Reader::new(&self.fields, packet, world);
        run::evaluate(self, packet, &mut reader)
    }

    /// The packet's hook.
    pub(super) fn hook(&self, packet: &Packet<'_>) -> Option<&Hook> {
        let key = HookKey::of(packet);
        let own = self.device(packet);
        let own = own.and_then(|index| self.devices.get(&(key.hook, index)));
        own.map(|(_, hook)| hook).or_else(|| self.hooks.get(&key))
    }

    /// Index of the device, if the packet's hook is one of that device alone.
    pub(super) fn device(&self, packet: &Packet<'_>) -> Option<u32> {
        let key = HookKey::of(packet);
        let device = key.device(packet)?;
        let (name, _) = self.devices.get(&(key.hook, device.index))?;
        // It may have been renamed, and is in the lists of other chains then.
        (name == device.name).then_some(device.index)
    }

    /// The base chain with this number on the packet's hook.
    pub(super) fn base(&self, packet: &Packet<'_>, chain: u32) -> Option<&Base> {
        let hook = self.hook(packet)?;
        hook.bases.iter().find(|base| base.chain == chain)
    }

    /// Steps of a rule.
    pub(super) fn steps(&self, chain: &Chain, rule: usize) -> std::ops::Range<usize> {
        let start = chain.rules.get(rule).map_or(chain.end, |code| code.start);
        let end = chain
            .rules
            .get(rule + 1)
            .map_or(chain.end, |code| code.start);
        start as usize..end as usize
    }

    /// The first of these steps that comes from behind the expression of this index.
    pub(super) fn behind(&self, steps: std::ops::Range<usize>, expr: u16) -> usize {
        let end = steps.end;
        let mut steps = steps;
        let is_behind = |step: &usize| self.exprs.get(*step).is_none_or(|from| *from > expr);
        steps.find(is_behind).unwrap_or(end)
    }

    fn table(
        &mut self,
        index: usize,
        table: &Table,
        age: Duration,
        bases: &mut Vec<(HookKey, Base)>,
    ) {
        let table_id = TableId::Nft(index as u32);
        let first = self.chains.len() as u32;
        let chain_names = table.chains.iter().map(|chain| chain.name.as_str());
        let jumps = Jumps(chain_names.zip(first..).collect());
        let names = TableNames {
            table,
            first_set: self.sets.len() as u32,
        };
        self.sets.extend(
            table
                .sets
                .iter()
                .map(|set| Lookup::new(table, set, &jumps, age)),
        );
        for (number, chain) in (0..).zip(&table.chains) {
            let id = ChainId {
                table: table_id,
                chain: number,
            };
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                let start = self.ops.len() as u32;
                let mut compiler = Compiler {
                    family: table.family,
                    jumps: &jumps,
                    names: &names,
                    fields: &mut self.fields,
                };
                let steps = compiler.rule(rule);
                let reads = self
                    .fields
                    .requested()
                    .iter()
                    .map(write::kind)
                    .fold(0, |a, b| a | b);
                for (op, expr) in steps {
                    self.ops.push(op);
                    self.exprs.push(expr);
                }
                rules.push(Code { start, reads });
            }
            let base = chain.base.as_ref();
            self.chains.push(Chain {
                id,
                rules,
                end: self.ops.len() as u32,
                policy: base.map(|base| match base.policy {
                    0 => Fate::Drop,
                    _ => Fate::Accept,
                }),
            });
            let Some(base) = base.filter(|_| table.flags & Table::DORMANT == 0) else {
                continue;
            };
            let hook = base.hook as u8;
            let nat = (base.kind == "nat").then_some(matches!(hook, 1 | 4));
            let pfs: &[u8] = match (table.family, hook) {
                (Family::Inet, 5) => &[NETDEV],
                (Family::Inet, _) => &[IPV4, IPV6],
                (Family::Ip, _) => &[IPV4],
                (Family::Ip6, _) => &[IPV6],
                (Family::Arp, _) => &[3],
                (Family::Bridge, _) => &[BRIDGE],
                (Family::Netdev, _) => &[NETDEV],
                (Family::Other(_), _) => &[],
            };
            let inet_ingress = table.family == Family::Inet && hook == 5;
            for pf in pfs {
                let key = HookKey {
                    pf: *pf,
                    hook: if inet_ingress { 0 } else { hook },
                };
                let on_device = *pf == NETDEV;
                let base = Base::new(key, id, first + number, base.priority, nat);
                bases.push((
                    key,
                    Base {
                        devices: on_device.then(|| chain_devices(chain)),
                        inet_ingress,
                        ..base
                    },
                ));
            }
        }
    }

    fn legacy(
        &mut self,
        index: usize,
        table: &xtables::legacy::Table,
        bases: &mut Vec<(HookKey, Base)>,
    ) {
        let table_id = TableId::Legacy(index as u32);
        let first = self.chains.len() as u32;
        for (number, chain) in (0..).zip(&table.chains) {
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                let start = self.ops.len() as u32;
                let compiled = legacy::compile(rule, table.family, &mut self.fields);
                let reads = self
                    .fields
                    .requested()
                    .iter()
                    .map(write::kind)
                    .fold(0, |a, b| a | b);
                for (at, matcher) in (0..).zip(compiled.conditions) {
                    self.ops.push(Op::Match(Box::new(matcher)));
                    self.exprs.push(at);
                }
                let verdict = match compiled.action {
                    Some(action) => Op::Action(Box::new(action)),
                    None => Op::Verdict(legacy_jump(&rule.jump, first)),
                };
                self.ops.push(verdict);
                self.exprs.push(u16::MAX);
                rules.push(Code { start, reads });
            }
            let policy = chain.base.as_ref().map(|base| match base.policy {
                xtables::legacy::Jump::Drop => Fate::Drop,
                _ => Fate::Accept,
            });
            self.chains.push(Chain {
                id: ChainId {
                    table: table_id,
                    chain: number,
                },
                rules,
                end: self.ops.len() as u32,
                policy,
            });
        }
        let pf = match table.family {
            xtables::Family::V4 => IPV4,
            xtables::Family::V6 => IPV6,
        };
        for (hook, chain) in (0..).zip(table.hooks) {
            let Some(chain) = chain.filter(|chain| *chain < table.chains.len()) else {
                continue;
            };
            let (priority, nat) = match table.name.as_str() {
                "raw" => (-300, None),
                "mangle" => (-150, None),
                "nat" if matches!(hook, 1 | 4) => (NAT_SOURCE, Some(true)),
                "nat" => (NAT_DESTINATION, Some(false)),
                "security" => (50, None),
                _ => (0, None),
            };
            let id = ChainId {
                table: table_id,
                chain: chain as u32,
            };
            let key = HookKey { pf, hook };
            bases.push((key, Base::new(key, id, first + chain as u32, priority, nat)));
        }
    }

    /// The number of fields that rules read.
    pub fn field_count(&self) -> usize {
        self.fields.len()
    }

    /// The rule's identity.
    pub(super) fn rule_id(&self, chain: u32, rule: usize) -> Option<RuleId> {
        Some(RuleId {
            chain: self.chains.get(chain as usize)?.id,
            rule: rule as u32,
        })
    }
}

impl Base {
    fn new(key: HookKey, id: ChainId, chain: u32, priority: i32, nat: Option<bool>) -> Self {
        let ip = matches!(key.pf, IPV4 | IPV6);
        let tracks = ip && matches!(key.hook, 0 | 3);
        let translates = match key.hook {
            0 | 3 => NAT_DESTINATION,
            _ => NAT_SOURCE,
        };
        Self {
            chain,
            id,
            priority,
            nat,
            devices: None,
            inet_ingress: false,
            early: tracks && priority < CONNTRACK,
            with_tracking: tracks && priority == CONNTRACK,
            before_nat: ip && key.hook != 2 && (nat.is_some() || priority <= translates),
            place: None,
        }
    }

    /// Whether it is registered on this device.
    pub(super) fn is_on(&self, name: &[u8]) -> bool {
        let mut devices = self.devices.iter().flatten();
        devices.any(|device| covers(device.as_bytes(), name))
    }

    /// Whether it is another chain of the same table on a device of this one's.
    pub(super) fn shares_device(&self, other: &Self) -> bool {
        let shares = |one: &Self, other: &Self| {
            let mut devices = other.devices.iter().flatten();
            devices.any(|device| one.is_on(device.as_bytes()))
        };
        let same_table = self.id != other.id && self.id.table == other.id.table;
        same_table && (shares(self, other) || shares(other, self))
    }

    /// Where it is in its hook: chains of type nat are called from where addresses are translated.
    pub(super) fn rank(&self) -> (i32, i32) {
        match self.nat {
            Some(true) => (NAT_SOURCE, self.priority),
            Some(false) => (NAT_DESTINATION, self.priority),
            None => (self.priority, 0),
        }
    }
}

/// Whether a device of this name is meant: by its name, or by a prefix with `*` behind it (`NFTA_DEVICE_PREFIX`).
fn covers(device: &[u8], name: &[u8]) -> bool {
    let prefix = device.strip_suffix(b"*");
    device == name || prefix.is_some_and(|prefix| name.starts_with(prefix))
}

fn chain_devices(chain: &crate::ruleset::model::Chain) -> Vec<String> {
    chain
        .base
        .as_ref()
        .map_or(Vec::new(), |base| base.devices.clone())
}

fn legacy_jump(jump: &xtables::legacy::Jump, first: u32) -> Decided {
    use xtables::legacy::Jump;
    match jump {
        Jump::Next => Decided::Continue,
        Jump::Accept => Decided::End(Fate::Accept),
        Jump::Drop => Decided::End(Fate::Drop),
        Jump::Queue => Decided::End(Fate::Queue {
            number: 0,
            bypass: false,
        }),
        Jump::Return => Decided::Return,
        Jump::Chain(chain) => Decided::Jump(first + *chain as u32),
        Jump::Goto(chain) => Decided::Goto(first + *chain as u32),
        Jump::Target(_) => Decided::Unknown(Reason::missing("the target was not compiled")),
    }
}
