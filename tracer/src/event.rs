//! The one public event type, version 1: what `--json` prints, one object a line.
//!
//! Keys may be added, never renamed. A key that is absent does not apply; `null` means not known.
//! So an `Option` field that is left out when `None` says "does not apply", and one that is
//! written as `null` says "not known". Strings that many events share are [`Arc`]s: a drop in the
//! steady state copies pointers, not text.

mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::walk::{NearestMiss, Phase, Step, StepResult};
use crate::packet::Packet;

/// Version of the JSON contract.
pub const VERSION: u32 = 1;

/// Everything that fwtrace reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Event {
    /// A packet was dropped or rejected.
    Drop(Box<DropEvent>),
    /// Drops happened that could not be shown.
    Lost(Lost),
    /// A ruleset was replaced or edited.
    RulesetChange(RulesetChange),
    /// The account of the run, at its end.
    Summary(Summary),
    /// Something went wrong; the run goes on unless it is the last line.
    Error(ErrorEvent),
}

/// A line of JSON: the version, then the event's own keys.
#[derive(Serialize, Deserialize)]
struct Line<E> {
    v: u32,
    #[serde(flatten)]
    event: E,
}

/// A line is not an event of this version.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not the JSON of an event.
    #[error("not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version of the contract.
    #[error("version {0} of the JSON contract, this fwtrace reads version {VERSION}")]
    Version(u32),
}

impl Event {
    /// Writes the event as one line of JSON, newline included.
    ///
    /// # Errors
    /// What the writer reports.
    pub fn write_json<W: std::io::Write>(&self, mut out: W) -> std::io::Result<()> {
        let line = Line {
            v: VERSION,
            event: self,
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")
    }

    /// Reads an event from its line of JSON; keys that this version does not know are skipped.
    ///
    /// # Errors
    /// The line is not an event, or an event of another version.
    pub fn from_json(line: &str) -> Result<Self, ParseError> {
        /// Only the version, so that another version is named rather than called malformed.
        #[derive(Deserialize)]
        struct Versioned {
            v: u32,
        }
        let Versioned { v } = serde_json::from_str(line)?;
        if v != VERSION {
            return Err(ParseError::Version(v));
        }
        Ok(serde_json::from_str::<Line<Self>>(line)?.event)
    }
}

/// A packet was dropped or rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropEvent {
    /// When, wall clock.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Dropped silently or with an answer.
    pub verdict: Verdict,
    /// Where.
    pub netns: NetnsRef,
    /// What dropped it.
    pub engine: Engine,
    /// The packet's family as a rule would call it.
    pub family: Option<Family>,
    /// The netfilter hook.
    pub hook: Option<Hook>,
    /// `enum skb_drop_reason` without its prefix: `NETFILTER_DROP`.
    pub reason: Option<Arc<str>>,
    /// Interface the packet came in on.
    pub iif: Option<Arc<str>>,
    /// Interface the packet was going out of.
    pub oif: Option<Arc<str>>,
    /// `meta mark`; 0, no mark, is left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u32,
    /// The packet.
    pub packet: Packet,
    /// The rule; `null` if it was a policy or is not known.
    pub rule: Option<Arc<RuleRef>>,
    /// The base chain whose policy it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<PolicyRef>>,
    /// The rules of this hook that the packet matched before the one that decided, in order. From a trace: those of earlier hooks
    /// too, as far as it goes back, and the one that decided last.
    pub path: Option<Arc<[PathStep]>>,
    /// The accepting rule that came nearest to matching, if one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_miss: Option<Arc<NearestMiss>>,
    /// The way through the chains of this hook; with `-v` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walk: Option<Arc<[Phase]>>,
    /// How the rule was found and how sure that is.
    pub evidence: Evidence,
    /// Conntrack's view of the packet at the moment of the drop.
    pub conntrack: Option<Conntrack>,
    /// The sender, if the drop happened in its context (OUTPUT).
    pub process: Option<Process>,
    /// How many packets this event stands for.
    pub count: u64,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Dropped silently.
    Drop,
    /// Dropped, and the sender was told.
    Reject,
}

/// What dropped the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// nf_tables, managed by nft or its library.
    Nftables,
    /// nf_tables, managed by iptables-nft and its siblings.
    IptablesNft,
    /// x_tables.
    IptablesLegacy,
    /// Conntrack itself.
    Conntrack,
    /// A BPF program: tc, XDP, cgroup or netfilter link.
    Bpf,
    /// Anything else: no socket, reverse path filter, checksum ...
    Other,
}

impl Engine {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Conntrack => "conntrack",
            Self::Bpf => "bpf",
            Self::Other => "other",
        }
    }
}

/// A family, by the word that a rule uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// IPv4 and IPv6; of tables only.
    Inet,
    /// ARP.
    Arp,
    /// Bridged frames.
    Bridge,
    /// A device's ingress or egress.
    Netdev,
}

impl Family {
    /// The word that nft uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// A device's receive side, before everything else.
    Ingress,
    /// A device's transmit side, after everything else.
    Egress,
}

impl Hook {
    /// The word that nft uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NetnsRef {
    /// Inode of its nsfs file, as `ls -iL /proc/PID/ns/net` shows it.
    pub inode: u32,
    /// Its name, if it has one that could be found.
    pub name: Option<Arc<str>>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleRef {
    /// The table's family.
    pub family: Family,
    /// Table.
    pub table: Arc<str>,
    /// The chain that holds the rule.
    pub chain: Arc<str>,
    /// The base chain that the packet entered through.
    pub base_chain: Option<Arc<str>>,
    /// 1-based position in the chain, in the ruleset that was in force.
    pub number: Option<u32>,
    /// The kernel's handle; legacy iptables has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// The rule in its manager's syntax; `null` if it could not be read.
    pub text: Option<Arc<str>>,
    /// The rule's comment, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Arc<str>>,
    /// The rule is no longer in the ruleset and was not seen while it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// A base chain whose policy decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRef {
    /// The table's family.
    pub family: Family,
    /// Table.
    pub table: Arc<str>,
    /// The base chain.
    pub chain: Arc<str>,
    /// How many rules it has.
    pub rules: Option<u32>,
    /// Whether no rule of the chain matched; false: some did, and none of them decided.
    pub none_matched: Option<bool>,
}

/// A rule that the packet passed on its way, with its verdict (`jump sub`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStep {
    /// Table.
    pub table: Arc<str>,
    /// Chain.
    pub chain: Arc<str>,
    /// 1-based position in the chain.
    pub number: Option<u32>,
    /// The kernel's handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// The rule's verdict.
    pub verdict: Arc<str>,
}

/// How the rule was found, and how sure that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// How.
    pub source: EvidenceSource,
    /// How sure.
    pub confidence: Confidence,
    /// With [`Confidence::Ambiguous`], the rules that it can have been.
    pub candidates: Vec<Candidate>,
    /// The function that freed the packet, `symbol+0xoffset`, where the source is the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Arc<str>>,
    /// Whether a rule or a policy did it, where the source is the engine and that much is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<DecidedBy>,
    /// What the evaluator would have said, where the kernel says something else; empty: that nothing
    /// drops the packet. A disagreement is a bug in fwtrace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<Vec<Candidate>>,
}

/// What in a chain drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// A rule.
    Rule,
    /// A base chain's policy.
    Policy,
}

impl DecidedBy {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Policy => "policy",
        }
    }
}

impl Evidence {
    /// The kernel named the rule.
    pub fn exact(source: EvidenceSource) -> Self {
        Self {
            source,
            confidence: Confidence::Exact,
            candidates: Vec::new(),
            location: None,
            decided_by: None,
            disagreement: None,
        }
    }

    /// Only the engine is known, from the function that freed the packet.
    pub fn engine(location: Option<Arc<str>>, decided_by: Option<DecidedBy>) -> Self {
        Self {
            source: EvidenceSource::Engine,
            confidence: Confidence::Engine,
            candidates: Vec::new(),
            location,
            decided_by,
            disagreement: None,
        }
    }
}

/// The rung of the ladder that found the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceSource {
    /// The rule's pointer on the kernel's stack.
    KernelStack,
    /// The counter that moved.
    KernelCounters,
    /// A probe on the function that set the verdict.
    KernelProbe,
    /// nftrace or TRACE.
    Trace,
    /// Computed from the ruleset.
    Evaluator,
    /// The rule logged the packet.
    Nflog,
    /// The function that freed the packet.
    Engine,
}

impl EvidenceSource {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KernelStack => "kernel-stack",
            Self::KernelCounters => "kernel-counters",
            Self::KernelProbe => "kernel-probe",
            Self::Trace => "trace",
            Self::Evaluator => "evaluator",
            Self::Nflog => "nflog",
            Self::Engine => "engine",
        }
    }
}

/// How sure an attribution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// The kernel said so.
    Exact,
    /// Computed from the ruleset and the packet.
    Computed,
    /// One of the candidates.
    Ambiguous,
    /// The engine only.
    Engine,
    /// Not known.
    Unknown,
}

impl Confidence {
    /// The word of the JSON contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Computed => "computed",
            Self::Ambiguous => "ambiguous",
            Self::Engine => "engine",
            Self::Unknown => "unknown",
        }
    }
}

/// A rule or a policy that it can have been.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// A rule.
    Rule(Arc<RuleRef>),
    /// A base chain's policy.
    Policy(Arc<PolicyRef>),
}

/// Conntrack's view of the packet. `mark` and `zone` are absent where there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conntrack {
    /// State, as `ct state` matches it.
    pub state: CtState,
    /// The connection's status bits, by the names of `ct status`.
    pub status: Vec<Arc<str>>,
    /// `ct mark`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// `ct zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Conntrack's TCP state, as `conntrack -L` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_state: Option<Arc<str>>,
    /// The tuples, if they show that addresses or ports were rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Nat>,
}

impl Conntrack {
    /// No connection: `none` (conntrack has not seen the packet), `untracked` or `invalid`.
    pub fn stateless(state: CtState) -> Self {
        Self {
            state,
            status: Vec::new(),
            mark: None,
            zone: None,
            tcp_state: None,
            nat: None,
        }
    }
}

/// Conntrack state of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CtState {
    /// First packet of a connection.
    New,
    /// Seen in both directions.
    Established,
    /// Expected by another connection, or an ICMP error about one.
    Related,
    /// Conntrack could not place it.
    Invalid,
    /// Told not to track it.
    Untracked,
    /// Conntrack has not seen it: not in use, or the drop came first.
    None,
}

impl CtState {
    /// The word that `ct state` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
            Self::None => "none",
        }
    }
}

/// The two tuples of a connection with address translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Original direction: as the sender wrote it.
    pub orig: Tuple,
    /// Reply direction: what an answer looks like here.
    pub reply: Tuple,
}

/// One direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: std::net::IpAddr,
    /// Source port; protocols without ports have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: std::net::IpAddr,
    /// Destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}

/// The process that sent the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name, as `ps -o comm` shows it.
    pub comm: Arc<str>,
    /// User id.
    pub uid: Option<u32>,
}

/// Drops happened that could not be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// When it was noticed.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// What lost them: `ring`; [`Lost::TRACE`]: not drops, but what the kernel told of them.
    pub source: Arc<str>,
    /// How many since the last report.
    pub count: u64,
}

impl Lost {
    /// [`Lost::source`] of messages of the kernel's trace: their drops are shown, without it.
    pub const TRACE: &str = "trace";
}

/// A ruleset was replaced or edited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesetChange {
    /// When the notification arrived.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Where.
    pub netns: NetnsRef,
    /// The generation that it made.
    pub generation: u32,
    /// Who did it.
    pub by: Option<ChangedBy>,
}

/// The process that changed a ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedBy {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub comm: Arc<str>,
}

/// The account of the run. `seen == shown + filtered + aggregated + lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// When the run ended.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Drops in the watched namespaces, whatever the reason.
    pub seen: u64,
    /// Printed.
    pub shown: u64,
    /// Not asked for: did not match the filter, or matched but for another `reason`; those stand
    /// in `other` too.
    pub filtered: u64,
    /// Stood for by a shown event whose `count` is above 1.
    pub aggregated: u64,
    /// Could not be shown.
    pub lost: u64,
    /// Of the filtered: matched all but the reason, by reason (`NO_SOCKET`).
    pub other: BTreeMap<Arc<str>, u64>,
    /// Shown drops by what did them, most first.
    pub rules: Vec<RuleCount>,
}

/// How many drops a rule, a policy or an engine did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// Where.
    pub netns: NetnsRef,
    /// The engine.
    pub engine: Engine,
    /// The rule; `null` if it was a policy or is not known.
    pub rule: Option<Arc<RuleRef>>,
    /// The base chain whose policy it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<PolicyRef>>,
    /// How many.
    pub count: u64,
}

/// Something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// When.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Cause and next step, as on stderr.
    pub message: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Timestamps as RFC 3339 in UTC with nine digits of fraction.
mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(t: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{t:.9}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(d)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::packet::{Family as PacketFamily, Proto, TcpFlags};

    /// The design's example.
    pub(crate) fn drop_event() -> DropEvent {
        DropEvent {
            time: "2026-11-22T14:03:41.512345678Z".parse().unwrap(),
            verdict: Verdict::Drop,
            netns: NetnsRef {
                inode: 4_026_532_246,
                name: Some("web".into()),
            },
            engine: Engine::Nftables,
            family: Some(Family::Ip),
            hook: Some(Hook::Input),
            reason: Some("NETFILTER_DROP".into()),
            iif: Some("eth0".into()),
            oif: None,
            mark: 0,
            packet: Packet {
                family: PacketFamily::Ipv4,
                proto: Some(Proto::TCP),
                src: Some([10, 9, 0, 1].into()),
                sport: Some(36334),
                dst: Some([10, 9, 0, 2].into()),
                dport: Some(80),
                len: Some(60),
                flags: Some(TcpFlags(2)),
                ..Packet::default()
            },
            rule: Some(Arc::new(RuleRef {
                family: Family::Inet,
                table: "t".into(),
                chain: "sub".into(),
                base_chain: Some("in".into()),
                number: Some(1),
                handle: Some(3),
                text: Some("tcp dport 80 counter drop comment \"block web\"".into()),
                comment: Some("block web".into()),
                gone: false,
            })),
            policy: None,
            path: Some(Arc::new([PathStep {
                table: "t".into(),
                chain: "in".into(),
                number: Some(2),
                handle: Some(5),
                verdict: "jump sub".into(),
            }])),
            nearest_miss: None,
            walk: None,
            evidence: Evidence::exact(EvidenceSource::KernelStack),
            conntrack: Some(Conntrack {
                mark: Some(0),
                zone: Some(0),
                ..Conntrack::stateless(CtState::New)
            }),
            process: None,
            count: 1,
        }
    }

    fn json(event: &Event) -> String {
        let mut out = Vec::new();
        event.write_json(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// The design's example, key by key and in its order.
    #[test]
    fn drop_is_the_documented_object() {
        let expected = concat!(
            r#"{"v":1,"type":"drop","time":"2026-11-22T14:03:41.512345678Z","verdict":"drop","#,
            r#""netns":{"inode":4026532246,"name":"web"},"#,
            r#""engine":"nftables","family":"ip","hook":"input","reason":"NETFILTER_DROP","#,
            r#""iif":"eth0","oif":null,"#,
            r#""packet":{"family":"ipv4","proto":"tcp","src":"10.9.0.1","sport":36334,"dst":"10.9.0.2","dport":80,"len":60,"flags":"S"},"#,
            r#""rule":{"family":"inet","table":"t","chain":"sub","base_chain":"in","number":1,"handle":3,"text":"tcp dport 80 counter drop comment \"block web\"","comment":"block web"},"#,
            r#""path":[{"table":"t","chain":"in","number":2,"handle":5,"verdict":"jump sub"}],"#,
            r#""evidence":{"source":"kernel-stack","confidence":"exact","candidates":[]},"#,
            r#""conntrack":{"state":"new","status":[],"mark":0,"zone":0},"#,
            r#""process":null,"count":1}"#,
            "\n"
        );
        assert_eq!(json(&Event::Drop(Box::new(drop_event()))), expected);
    }

    #[test]
    fn policy_drop_has_a_null_rule_and_a_policy() {
        let policy = Arc::new(PolicyRef {
            family: Family::Inet,
            table: "t".into(),
            chain: "in".into(),
            rules: Some(9),
            none_matched: None,
        });
        let text = json(&Event::Drop(Box::new(DropEvent {
            rule: None,
            policy: Some(policy),
            ..drop_event()
        })));
        assert!(
            text.contains(
                r#""rule":null,"policy":{"family":"inet","table":"t","chain":"in","rules":9,"none_matched":null},"path""#
            ),
            "{text}"
        );
    }

    #[test]
    fn every_event_survives_the_round_trip() {
        let time = "2026-11-22T14:03:41.000000001Z".parse().unwrap();
        let netns = NetnsRef {
            inode: 7,
            name: None,
        };
        let mut ambiguous = drop_event();
        let rule = ambiguous.rule.take().unwrap();
        ambiguous.evidence.confidence = Confidence::Ambiguous;
        ambiguous.evidence.candidates = vec![Candidate::Rule(rule.clone())];
        ambiguous.process = Some(Process {
            pid: 12,
            comm: "curl".into(),
            uid: Some(0),
        });
        let events = [
            Event::Drop(Box::new(drop_event())),
            Event::Drop(Box::new(ambiguous)),
            Event::Lost(Lost {
                time,
                source: "ring".into(),
                count: 3,
            }),
            Event::RulesetChange(RulesetChange {
                time,
                netns: netns.clone(),
                generation: 9,
                by: Some(ChangedBy {
                    pid: 4,
                    comm: "nft".into(),
                }),
            }),
            Event::Summary(Summary {
                time,
                seen: 6,
                shown: 2,
                filtered: 3,
                aggregated: 0,
                lost: 1,
                other: [("NO_SOCKET".into(), 2)].into(),
                rules: vec![RuleCount {
                    netns,
                    engine: Engine::Nftables,
                    rule: Some(rule),
                    policy: None,
                    count: 2,
                }],
            }),
            Event::Error(ErrorEvent {
                time,
                message: "no".to_owned(),
            }),
        ];
        for event in events {
            let text = json(&event);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.ends_with('\n'), "{text}");
            assert_eq!(Event::from_json(&text).unwrap(), event, "{text}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let err = Event::from_json(r#"{"v":2,"type":"drop"}"#).unwrap_err();
        assert!(matches!(err, ParseError::Version(2)), "{err}");
    }
}
