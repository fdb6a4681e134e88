//! What is to be done: flags checked and resolved.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use super::values::{Ports, Prefix, Table};
use crate::demo::scenes::Scene;
use crate::event::{Candidate, DropEvent, Engine, Family, Hook};
use crate::expr::Expression;
use crate::extcap::Question;
use crate::netns::{self, NetNs};
use crate::output::Options;
use crate::packet::Proto;
use crate::pcapng;

/// What is to be done.
#[derive(Debug)]
pub enum Plan {
    /// Live attribution.
    Live(Box<Live>),
    /// Show a capture.
    Replay(Box<Replay>),
    /// Print the rulesets.
    Rules(Rules),
    /// Print what the machine allows.
    Features(Features),
    /// Show the scenes.
    Demo(Demo),
    /// Answer Wireshark.
    Extcap(Question),
    /// Tell what becomes of a filter expression.
    Expressed(Expressed),
}

/// Live attribution.
#[derive(Debug)]
pub struct Live {
    /// Which drops.
    pub filter: Filter,
    /// Which of those, in tcpdump's language.
    pub expression: Option<Expression>,
    /// Where.
    pub watch: Watch,
    /// Stop after so many shown drops.
    pub count: Option<u64>,
    /// Stop after so long.
    pub duration: Option<Duration>,
    /// How they are shown.
    pub output: Options,
    /// Created when every source is attached.
    pub ready_file: Option<PathBuf>,
    /// The best evidence to use; only tests ask for less than there is.
    pub evidence: Ladder,
    /// Have the kernel trace up to so many packets a second, 0: all; `None`: none, and nothing is changed.
    pub trace: Option<u32>,
    /// Bytes of each packet that the kernel hands over at the most, if it matters.
    pub snaplen: Option<u32>,
    /// Keep a record of what is shown, with the packets.
    pub write: Option<pcapng::Plan>,
    /// Whether drops are seen by eBPF.
    pub ebpf: Ebpf,
    /// The NFLOG groups that are listened to.
    pub nflog: Groups,
    /// Room for logged packets, bytes a group; only tests ask for less.
    pub nflog_buffer: usize,
}

/// NFLOG groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Groups {
    /// Those that the rules in force log to.
    #[default]
    Auto,
    /// These; empty: none.
    These(BTreeSet<u16>),
}

impl Groups {
    /// No group.
    pub const NONE: Self = Self::These(BTreeSet::new());
}

/// `-r`: show a capture.
#[derive(Debug)]
pub struct Replay {
    /// The file; `-`: stdin.
    pub path: PathBuf,
    /// Which of its drops; `None`: all.
    pub filter: Option<Filter>,
    /// And which of these, in tcpdump's language.
    pub expression: Option<Expression>,
    /// Stop after so many shown packets.
    pub count: Option<u64>,
    /// How they are shown.
    pub output: Options,
}

/// Whether drops are seen by eBPF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ebpf {
    /// If the machine allows it.
    #[default]
    May,
    /// Or there is no run.
    Must,
    /// No: what is shown is what rules log.
    Off,
}

/// From which rung of the ladder of evidence on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Ladder {
    /// All that the machine has.
    #[default]
    Best,
    /// What the evaluator computes, and below.
    Evaluator,
    /// The engine only.
    Engine,
}

/// `fwtrace rules`.
#[derive(Debug)]
pub struct Rules {
    /// Whose rulesets.
    pub watch: Watch,
    /// Only these tables; empty: all.
    pub tables: Vec<Table>,
    /// Only these chains; empty: all.
    pub chains: Vec<String>,
    /// Without counters.
    pub stateless: bool,
    /// As JSON lines.
    pub json: bool,
}

/// `fwtrace features`.
#[derive(Debug)]
pub struct Features {
    /// As JSON lines.
    pub json: bool,
}

/// `fwtrace demo`.
#[derive(Debug)]
pub struct Demo {
    /// Which scenes.
    pub scenes: Vec<&'static Scene>,
    /// Only list them.
    pub list: bool,
    /// As JSON lines.
    pub json: bool,
}

/// `fwtrace -d`: where each part of a filter expression is checked; [`Display`](fmt::Display) prints it.
#[derive(Debug)]
pub struct Expressed {
    /// The expression.
    pub expression: Expression,
    /// Parts that the kernel's side of the filter checks.
    pub kernel: Vec<String>,
    /// Parts that are checked on the captured bytes only.
    pub rest: Vec<String>,
}

impl fmt::Display for Expressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: &[String]| match parts {
            [] => "nothing".to_owned(),
            parts => parts.join(", "),
        };
        writeln!(f, "# in the kernel: {}", list(&self.kernel))?;
        writeln!(f, "# on the captured bytes only: {}", list(&self.rest))?;
        match self.expression.reach() {
            Some(bytes) => writeln!(
                f,
                "# reads the first {bytes} bytes from the network header on"
            )?,
            None => writeln!(f, "# may read any byte")?,
        }
        f.write_str(self.expression.listing())
    }
}

/// Which namespaces are watched.
#[derive(Clone, Debug)]
pub enum Watch {
    /// These, each once.
    These(Vec<NetNs>),
    /// Every one, whenever it appears.
    All,
}

impl Watch {
    /// The namespaces that `specs` name; without any, the current one.
    pub(super) fn find(specs: &[String]) -> Result<Self, Error> {
        if specs.is_empty() {
            return Ok(Self::These(vec![NetNs::current().map_err(refused)?]));
        }
        let mut found: Vec<NetNs> = Vec::new();
        for spec in specs {
            let ns = NetNs::find(spec).map_err(refused)?;
            if found.iter().all(|other| other.inode() != ns.inode()) {
                found.push(ns);
            }
        }
        Ok(Self::These(found))
    }

    /// Whether an event has to say where it happened.
    pub fn several(&self) -> bool {
        match self {
            Self::These(namespaces) => namespaces.len() > 1,
            Self::All => true,
        }
    }

    /// The namespaces that are there now.
    pub fn namespaces(&self) -> Vec<NetNs> {
        match self {
            Self::These(namespaces) => namespaces.clone(),
            Self::All => NetNs::all(),
        }
    }

    /// The interfaces' own names (an alternative name is resolved); each must be in one of the
    /// namespaces at least.
    pub(super) fn interfaces(&self, names: &[String]) -> Result<Vec<String>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let namespaces = self.namespaces();
        let mut found = Vec::new();
        for name in names {
            let mut own = None;
            for ns in &namespaces {
                let index = match ns.ifindex(name) {
                    Ok(index) => index,
                    // One of many may be gone by now.
                    Err(_) if matches!(self, Self::All) => continue,
                    Err(err) => return Err(refused(err)),
                };
                if let Some(index) = index {
                    own = ns.ifname(index).map_err(refused)?;
                    break;
                }
            }
            let Some(own) = own else {
                let place = match namespaces.as_slice() {
                    _ if matches!(self, Self::All) => "any network namespace".to_owned(),
                    [one] => match one.name() {
                        Some(name) => format!("network namespace {name}"),
                        None => "this network namespace".to_owned(),
                    },
                    _ => "any of the network namespaces asked for".to_owned(),
                };
                return Err(Error::usage(format!(
                    "no interface '{name}' in {place}; `ip link` lists them, -N chooses the namespace"
                )));
            };
            if !found.contains(&own) {
                found.push(own);
            }
        }
        Ok(found)
    }
}

/// A namespace that cannot be had: wrong usage, unless this process may not look.
fn refused(err: netns::Error) -> Error {
    let source = match &err {
        netns::Error::Open { source, .. } | netns::Error::Enter { source, .. } => source.kind(),
        netns::Error::NotFound(_) | netns::Error::NotNetns(_) => {
            return Error::Usage(err.to_string());
        }
    };
    match source {
        std::io::ErrorKind::PermissionDenied => Error::Permission(format!(
            "{err}; other namespaces need CAP_SYS_ADMIN and CAP_SYS_PTRACE: run as root"
        )),
        _ => Error::Usage(err.to_string()),
    }
}

/// Which drops are shown. Every condition must hold; an empty list is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Ports; those of one side are alternatives.
    pub ports: Vec<PortMatch>,
    /// Addresses; those of one side are alternatives.
    pub prefixes: Vec<PrefixMatch>,
    /// IP protocol.
    pub proto: Option<Proto>,
    /// 4 or 6.
    pub ip_version: Option<u8>,
    /// Interfaces, any of them, in or out.
    pub ifaces: Vec<String>,
    /// Hooks.
    pub hooks: Vec<Hook>,
    /// Tables of the rule.
    pub tables: Vec<Table>,
    /// Chains of the rule, or the base chain that led to it.
    pub chains: Vec<String>,
    /// Drop reasons.
    pub reasons: Reasons,
}

/// Source, destination or either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Either.
    Any,
    /// Source.
    Src,
    /// Destination.
    Dst,
}

/// A condition on ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMatch {
    /// The ports.
    pub ports: Ports,
    /// Whose.
    pub side: Side,
}

impl PortMatch {
    pub(super) fn new(ports: Ports, side: Side) -> Self {
        Self { ports, side }
    }
}

/// A condition on addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// The prefix.
    pub prefix: Prefix,
    /// Whose.
    pub side: Side,
}

impl PrefixMatch {
    pub(super) fn new(prefix: Prefix, side: Side) -> Self {
        Self { prefix, side }
    }

    /// 4 or 6.
    pub(super) fn version(&self) -> u8 {
        if self.prefix.addr.is_ipv4() { 4 } else { 6 }
    }
}

/// Which drop reasons are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reasons {
    /// Netfilter's.
    #[default]
    Netfilter,
    /// All.
    All,
    /// These, by their names without prefix, in capitals.
    Names(Vec<String>),
}

impl Reasons {
    pub(super) fn new(names: &[String]) -> Self {
        if names.is_empty() {
            Self::Netfilter
        } else if names.iter().any(|name| name.eq_ignore_ascii_case("all")) {
            Self::All
        } else {
            let plain = |name: &String| {
                let name = name.to_ascii_uppercase();
                match name.strip_prefix("SKB_DROP_REASON_") {
                    Some(plain) => plain.to_owned(),
                    None => name,
                }
            };
            Self::Names(names.iter().map(plain).collect())
        }
    }
}

impl Filter {
    /// Refuses conditions that no packet can meet.
    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(proto) = self.proto
            && !self.ports.is_empty()
            && !proto.has_ports()
        {
            return Err(Error::usage(format!(
                "--proto {proto} and a port contradict each other: {proto} has no ports; leave one out"
            )));
        }
        for side in [Side::Any, Side::Src, Side::Dst] {
            let prefixes: Vec<_> = self.prefixes.iter().filter(|p| p.side == side).collect();
            let mut versions = self.versions();
            versions.retain(|version| prefixes.iter().any(|p| p.version() == *version));
            if let (Some(wrong), true) = (prefixes.first(), versions.is_empty()) {
                return Err(Error::usage(format!(
                    "{}/{} contradicts the other conditions: no packet is both IPv4 and IPv6; leave one out",
                    wrong.prefix.addr, wrong.prefix.len
                )));
            }
        }
        Ok(())
    }

    /// The IP versions that -4, -6 and the addresses leave.
    fn versions(&self) -> Vec<u8> {
        let mut versions = match self.ip_version {
            Some(version) => vec![version],
            None => vec![4, 6],
        };
        for side in [Side::Any, Side::Src, Side::Dst] {
            let mut prefixes = self.prefixes.iter().filter(|p| p.side == side).peekable();
            if prefixes.peek().is_some() {
                let wanted: Vec<u8> = prefixes.map(PrefixMatch::version).collect();
                versions.retain(|version| wanted.contains(version));
            }
        }
        versions
    }

    /// The conditions that only an attributed drop can answer: hook, table, chain. What is not
    /// known about a drop by the firewall does not hide it.
    pub fn shows(&self, drop: &DropEvent) -> bool {
        let firewall = matches!(
            drop.engine,
            Engine::Nftables | Engine::IptablesNft | Engine::IptablesLegacy
        );
        let hook = match drop.hook {
            Some(hook) => self.hooks.is_empty() || self.hooks.contains(&hook),
            None => self.hooks.is_empty() || firewall,
        };
        if !hook || (self.tables.is_empty() && self.chains.is_empty()) {
            return hook;
        }
        let by_rule = drop.rule.iter().cloned().map(Candidate::Rule);
        let by_policy = drop.policy.iter().cloned().map(Candidate::Policy);
        let mut known = by_rule.chain(by_policy).peekable();
        if known.peek().is_some() {
            return known.any(|candidate| self.selects(&candidate));
        }
        match drop.evidence.candidates.as_slice() {
            [] => firewall,
            candidates => candidates.iter().any(|candidate| self.selects(candidate)),
        }
    }

    fn selects(&self, candidate: &Candidate) -> bool {
        let (family, table, chain, base) = match candidate {
            Candidate::Rule(r) => (r.family, &r.table, &r.chain, r.base_chain.as_ref()),
            Candidate::Policy(p) => (p.family, &p.table, &p.chain, None),
        };
        let chain = std::iter::once(chain).chain(base);
        self.selects_table(family, table)
            && (self.chains.is_empty()
                || chain
                    .into_iter()
                    .any(|c| self.chains.iter().any(|wanted| **wanted == **c)))
    }

    fn selects_table(&self, family: Family, name: &str) -> bool {
        self.tables.is_empty() || self.tables.iter().any(|t| t.matches(family.as_str(), name))
    }
}
