//! The ground that cases are run on: namespaces, the kernel's trace, and fwtrace watching.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fwtrace::event::{DropEvent, Engine, Event};
use fwtrace::netlink::nftables::read_ruleset;
use fwtrace::netlink::socket::{Protocol, Socket, flags, message};
use fwtrace::ruleset::expr::Expr;
use fwtrace::ruleset::model::{Ending, Ruleset};

use crate::fwtrace::Fwtrace;
use crate::net::{Net, Place};
use crate::oracle::case::{Case, Loader, Sent, Step};
use crate::oracle::compare::{Answer, Known, Rules, compare};
use crate::oracle::cut::Cut;
use crate::oracle::legacy::Legacy;
use crate::oracle::packet::{acknowledge, proto};
use crate::oracle::send::Sender;
use crate::oracle::tally::{self, Tally};
use crate::oracle::truth::{Batch, By, Key, Trace, Truth};
use crate::oracle::{aim, random::Random, xt_rules};

/// Source address of sentinels; nothing else has it.
const SENTINEL: &str = "10.1.0.9";
/// The harness's own tables: every packet is traced, and a sentinel is dropped at once.
const TABLES: &str = "add table netdev oracle
add chain netdev oracle in { type filter hook ingress devices = { r0, r1 } priority -2147483648; }
add rule netdev oracle in meta nftrace set 1
add rule netdev oracle in ip saddr 10.1.0.9 drop
add table inet oracle
add chain inet oracle out { type filter hook output priority -2147483648; }
add rule inet oracle out meta nftrace set 1
";
/// Conntrack on, with marks on connections.
const CONNTRACK: &str = "add table inet oracle_ct
add chain inet oracle_ct pre { type filter hook prerouting priority -190; }
add rule inet oracle_ct pre ct state new ct mark set 0x10
add chain inet oracle_ct out { type filter hook output priority -190; }
add rule inet oracle_ct out ct state new ct mark set 0x20
";
/// New legacy tables are taken in after so many drops at the latest, so far apart.
const PRIMES: usize = 200;
const PAUSE: Duration = Duration::from_millis(2);
/// How fwtrace is run for its evaluator's answers, and for the trace's: of every packet.
const EVALUATOR: &[&str] = &["--evidence", "evaluator"];
const TRACE: &[&str] = &["--trace=1000000"];
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const CT_DELETE: u16 = 1 << 8 | 2;

/// What a run of a case found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Packets of the case, sent.
    pub sent: usize,
    /// Messages of the kernel's trace.
    pub traced: usize,
    /// What fwtrace said, in all of its runs, against the kernel.
    pub answers: Vec<Answer>,
    /// Drops by the kernel's word.
    pub drops: usize,
    /// Drops that it took until fwtrace had taken in new legacy tables.
    pub primed: usize,
    /// Answers that were made wrong on purpose.
    pub falsified: usize,
    /// Rules that the kernel or nft refused, and that the case then went without.
    pub refused: usize,
}

impl Outcome {
    /// Whether a run of fwtrace has not shown a drop.
    pub fn misses_events(&self) -> bool {
        self.answers.iter().any(|answer| answer.event.is_none())
    }
}

/// Who watches, and who has the kernel's TRACE lines of legacy tables, which only one can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// No legacy tables: fwtrace as it is, its evaluator, and `--trace`.
    Plain,
    /// Legacy tables, whose lines the harness has: fwtrace as it is, and its evaluator.
    Legacy,
    /// Legacy tables, whose lines `fwtrace --trace` has: only that.
    LegacyTraced,
}

/// Three namespaces with fwtrace in the middle one.
#[derive(Debug)]
pub struct Ground {
    net: Net,
    sender: Sender,
    trace: Trace,
    netlink: Socket,
    passive: Fwtrace,
    evaluator: Option<Fwtrace>,
    traced: Option<Fwtrace>,
    watch: Watch,
    legacy: Option<Legacy>,
    sentinels: u16,
}

/// What the runs of fwtrace say of a batch.
#[derive(Debug)]
struct Said {
    passive: Vec<DropEvent>,
    evaluator: Option<Vec<DropEvent>>,
    traced: Option<Vec<DropEvent>>,
}

impl Said {
    fn extend(&mut self, more: Self) {
        self.passive.extend(more.passive);
        for (own, more) in [
            (&mut self.evaluator, more.evaluator),
            (&mut self.traced, more.traced),
        ] {
            if let Some(own) = own {
                own.extend(more.unwrap_or_default());
            }
        }
    }
}

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    /// A command fails, or fwtrace does not start.
    pub fn new(watch: Watch) -> Result<Self> {
        let net = Net::routed()?;
        prepare(&net)?;
        let trace = Trace::open(&net.r, watch == Watch::Legacy)?;
        let netlink = net.r.run(|| Socket::open(Protocol::Netfilter, &[]))?;
        let sender = Sender::new(&net)?;
        if watch == Watch::LegacyTraced {
            // Where there are none yet, `--trace` leaves the logger alone.
            for loader in [Loader::IptablesLegacy, Loader::Ip6tablesLegacy] {
                net.r.command(loader.argv(), &xt_rules::nothing())?;
            }
        }
        let start = |args: &[&str]| Fwtrace::start(&net.r, args);
        let (passive, evaluator, traced) = match watch {
            Watch::Plain => (start(&[])?, Some(start(EVALUATOR)?), Some(start(TRACE)?)),
            Watch::Legacy => (start(&[])?, Some(start(EVALUATOR)?), None),
            Watch::LegacyTraced => (start(TRACE)?, None, None),
        };
        Ok(Self {
            net,
            sender,
            trace,
            netlink,
            passive,
            evaluator,
            traced,
            watch,
            legacy: (watch != Watch::Plain).then(Legacy::default),
            sentinels: 0,
        })
    }

    /// Runs a case; rules that are refused are taken out of it. Every so manieth answer is made
    /// wrong first, if `falsify` says so.
    ///
    /// # Errors
    /// The kernel's word cannot be had: what was found then proves nothing.
    pub fn run(&mut self, case: &mut Case, falsify: Option<usize>) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        self.open(case)?;
        let last = case.steps.iter().rposition(Step::is_legacy);
        for index in 0..case.steps.len() {
            outcome.refused += self.load(&mut case.steps[index])?;
            // Other rules may drop the primers, too.
            if Some(index) == last {
                outcome.primed = self.prime(case)?;
            }
        }
        // With that drop fwtrace has read the rules, and captures as much of packets as they look at.
        self.settle()?;
        let before = read_ruleset(&mut self.netlink)?;
        let rules = known(&before, self.legacy.as_ref(), case);
        outcome.sent = case.packets.len();
        let cut = Cut::of(&case.packets);
        let tally = match self.watch {
            Watch::LegacyTraced => Some(self.tally()?.0),
            _ => None,
        };
        let trace = &mut self.trace;
        self.sender
            .send(&case.packets, |packet| patched(packet, trace));
        let (mut batch, mut said) = self.settle()?;
        if let Some(every) = falsify {
            outcome.falsified = falsify_events(&mut said.passive, every);
        }
        outcome.traced = batch.messages;
        outcome.drops = batch.drops.len();
        let after = read_ruleset(&mut self.netlink)?;
        check_counters(&before, &after, &batch.drops)?;
        outcome.answers = self.answers(tally.as_ref(), &mut batch, &mut said, &rules, &cut)?;
        if outcome.misses_events() {
            // What R sends by itself on another processor can be traced or counted before the last packet that was waited for, and dropped behind it.
            let (later, late) = self.settle()?;
            batch.drops.extend(later.drops);
            said.extend(late);
            outcome.answers = self.answers(tally.as_ref(), &mut batch, &mut said, &rules, &cut)?;
        }
        Ok(outcome)
    }

    /// Compares what was said with the kernel's word, with `tally`, what the counters were before, also with these; adds what comes meanwhile.
    fn answers(
        &mut self,
        tally: Option<&Tally>,
        batch: &mut Batch,
        said: &mut Said,
        rules: &Rules,
        cut: &Cut,
    ) -> Result<Vec<Answer>> {
        let Some(tally) = tally else {
            let runs = [
                Some(&said.passive),
                said.evaluator.as_ref(),
                said.traced.as_ref(),
            ];
            let answers = runs.into_iter().flatten();
            return Ok(answers
                .flat_map(|events| compare(&batch.drops, events, rules, cut))
                .collect());
        };
        let (after, drops, events) = self.tally()?;
        batch.drops.extend(drops);
        said.passive.extend(events);
        let events = said.passive.iter().cloned();
        let (named, others): (Vec<_>, Vec<_>) =
            events.partition(|event| tally::must_have_counted(event, rules, cut));
        let mut answers = compare(&batch.drops, &others, rules, cut);
        let legacy = self.legacy.as_ref().context("no legacy tables")?;
        answers.extend(after.grade(tally, legacy, &named));
        Ok(answers)
    }

    /// Clears the ground and opens the case's connections.
    fn open(&mut self, case: &Case) -> Result<()> {
        if let Some(legacy) = &mut self.legacy {
            for (loader, family) in [
                (Loader::IptablesLegacy, "ip"),
                (Loader::Ip6tablesLegacy, "ip6"),
            ] {
                let replaced = case.steps.iter().any(|s| s.loader == loader);
                if !case.opening.is_empty() || !replaced {
                    let text = xt_rules::nothing();
                    self.net.r.command(loader.argv(), &text)?;
                    legacy.load(family, &text);
                }
            }
        }
        let own = if case.conntrack { CONNTRACK } else { "" };
        let text = format!("flush ruleset\n{TABLES}{own}");
        self.net.r.command(Loader::Nft.argv(), &text)?;
        if !case.opening.is_empty() {
            self.sender.listen(&self.net)?;
            self.trace.answers.clear();
            let (seq, body) = (self.netlink.next_seq(), [0, 0, 0, 0]);
            let request = message(CT_DELETE, flags::REQUEST | flags::ACK, seq, &body);
            self.netlink.request_ack(&request)?;
            let trace = &mut self.trace;
            self.sender
                .send(&case.opening, |packet| patched(packet, trace));
        }
        // What R sent by itself meanwhile may have met the rulesets of before.
        self.settle()?;
        Ok(())
    }

    /// Waits until all that was sent has come to an end: the kernel's word, and fwtrace's.
    fn settle(&mut self) -> Result<(Batch, Said)> {
        let number = self.sentinel();
        let empty = Legacy::default();
        let legacy = self.legacy.as_ref().unwrap_or(&empty);
        let batch = self.trace.read(|key| is_sentinel(key, number), legacy)?;
        let said = |run: &mut Fwtrace, what| events(run, number).context(what);
        let said = Said {
            passive: said(&mut self.passive, "fwtrace")?,
            evaluator: match &mut self.evaluator {
                Some(run) => Some(said(run, "fwtrace's evaluator")?),
                None => None,
            },
            traced: match &mut self.traced {
                Some(run) => Some(said(run, "fwtrace --trace")?),
                None => None,
            },
        };
        Ok((batch, said))
    }

    /// The counters of legacy rules at a moment at which nothing is dropped, and what was dropped
    /// before it: R may send something by itself at any time.
    fn tally(&mut self) -> Result<(Tally, Vec<Truth>, Vec<DropEvent>)> {
        let (mut drops, mut events) = (Vec::new(), Vec::new());
        for _ in 0..PRIMES {
            let tally = Tally::read(&self.net.r)?;
            let (batch, said) = self.settle()?;
            if batch.drops.is_empty() && said.passive.is_empty() {
                return Ok((tally, drops, events));
            }
            drops.extend(batch.drops);
            events.extend(said.passive);
        }
        bail!("R does not come to rest")
    }

    /// Loads a ruleset, without the lines that are refused; how many that were.
    fn load(&mut self, step: &mut Step) -> Result<usize> {
        let mut refused = 0;
        loop {
            let error = match self.net.r.command(step.loader.argv(), &step.text) {
                Ok(_) => break,
                Err(error) => format!("{error:#}"),
            };
            let lines = refused_lines(step, &error);
            ensure!(!lines.is_empty(), "{error}");
            refused += lines.len();
            let keep = step
                .text
                .lines()
                .enumerate()
                .filter(|(i, _)| !lines.contains(&(i + 1)));
            step.text = keep.map(|(_, line)| format!("{line}\n")).collect();
        }
        if let Some(legacy) = &mut self.legacy {
            match step.loader {
                Loader::IptablesLegacy => legacy.load("ip", &step.text),
                Loader::Ip6tablesLegacy => legacy.load("ip6", &step.text),
                _ => {}
            }
        }
        Ok(refused)
    }

    /// Sends a packet that is dropped first thing, and is the last of a batch; its number.
    fn sentinel(&mut self) -> u16 {
        self.sentinels = self.sentinels % 60_000 + 1;
        self.probe(SENTINEL, self.sentinels);
        self.sentinels
    }

    /// Drops packets until fwtrace names the legacy rule that does it, of each family: it takes in
    /// tables when they drop. How many it took.
    fn prime(&mut self, case: &Case) -> Result<usize> {
        let mut sent = 0;
        for (v6, primer) in [false, true].into_iter().zip(xt_rules::PRIMERS) {
            let rule = xt_rules::priming(v6);
            if !case.steps.iter().any(|step| step.text.contains(&rule)) {
                continue;
            }
            let primes = |event: &DropEvent| {
                let src = event.packet.src.map(|src| src.to_string());
                src.as_deref() == Some(primer) && tally::is_named(event)
            };
            let mut known = false;
            for _ in 0..PRIMES {
                sent += 1;
                self.probe(primer, 7);
                let (_, said) = self.settle()?;
                let mut runs = [Some(said.passive), said.evaluator].into_iter().flatten();
                known = runs.all(|events| events.iter().any(primes));
                if known {
                    break;
                }
                std::thread::sleep(PAUSE);
            }
            ensure!(known, "fwtrace does not take in the legacy tables");
        }
        Ok(sent)
    }

    /// Sends a datagram from A to R.
    fn probe(&self, src: &str, sport: u16) {
        let v6 = src.contains(':');
        let mut spec = aim::plain(&mut Random::new(0), aim::Hook::Input, v6);
        spec.from = Place::A;
        spec.src = src.parse().unwrap_or(spec.src);
        spec.proto = proto::UDP;
        (spec.sport, spec.dport) = (sport, 9);
        let sent = Sent {
            from: Place::A,
            bytes: spec.bytes(),
            mark: 0,
            acknowledges: false,
        };
        self.sender.send(&[sent], |_| None);
    }

    /// Ends all runs of fwtrace; how many drops they have lost, and said so.
    ///
    /// # Errors
    /// One did not end well.
    pub fn end(self) -> Result<u64> {
        let mut lost = 0;
        for run in [Some(self.passive), self.evaluator, self.traced]
            .into_iter()
            .flatten()
        {
            let end = run.interrupt()?;
            ensure!(
                end.status.success(),
                "fwtrace: {}: {}",
                end.status,
                end.stderr
            );
            lost += end.count("lost")?;
        }
        Ok(lost)
    }
}

/// Routes and neighbours for all addresses of the packets, and silent neighbours: A and B answer
/// nothing.
fn prepare(net: &Net) -> Result<()> {
    let mut batch = String::new();
    for v6 in [false, true] {
        for (place, dev, mac) in [
            (Place::A, "r0", "02:00:00:00:0a:00"),
            (Place::B, "r1", "02:00:00:00:0c:00"),
        ] {
            for address in aim::addresses(place, v6) {
                let text = address.to_string();
                if ["10.", "fd0"].iter().any(|start| text.starts_with(start)) {
                    batch +=
                        &format!("neigh replace {address} lladdr {mac} dev {dev} nud permanent\n");
                }
            }
        }
    }
    batch +=
        "route replace default via 10.2.0.1 dev r1\nroute replace default via fd02::1 dev r1\n";
    net.r.ip(&batch)?;
    for key in ["all", "default", "r0", "r1"] {
        net.r
            .sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
    }
    net.r.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    net.r.sysctl("net/ipv6/icmp/ratelimit", "0")?;
    net.r.sysctl("net/ipv4/tcp_synack_retries", "0")?;
    for (ns, dev) in [(&net.a, "a0"), (&net.b, "b0")] {
        let silent = format!(
            "add table netdev silent\n\
             add chain netdev silent in {{ type filter hook ingress device {dev} priority 0; policy drop; }}\n"
        );
        ns.command(Loader::Nft.argv(), &silent)?;
    }
    Ok(())
}

/// The packet with R's sequence number, if it acknowledges it.
fn patched(packet: &Sent, trace: &mut Trace) -> Option<Vec<u8>> {
    if !packet.acknowledges {
        return None;
    }
    let mut bytes = packet.bytes.clone();
    let ip = bytes.get_mut(14..)?;
    let start = if ip.first()? >> 4 == 6 { 40 } else { 20 };
    let port = u16::from_be_bytes(*ip.get(start..)?.first_chunk()?);
    let answer = trace.answer(port)?;
    acknowledge(ip, answer.wrapping_add(1));
    Some(bytes)
}

fn is_sentinel(key: &Key, number: u16) -> bool {
    key.src.to_string() == SENTINEL && key.ports == Some((number, 9))
}

/// fwtrace's drops up to the sentinel's.
fn events(run: &mut Fwtrace, number: u16) -> Result<Vec<DropEvent>> {
    let mut events = Vec::new();
    loop {
        let text = run.next_drop()?.json.to_string();
        let event = match Event::from_json(&text) {
            Ok(Event::Drop(event)) => *event,
            Ok(other) => bail!("no drop: {other:?}"),
            Err(error) => bail!("{error}: {text}"),
        };
        let packet = &event.packet;
        let from_sentinel = packet.src.is_some_and(|src| src.to_string() == SENTINEL);
        if from_sentinel && packet.sport == Some(number) {
            return Ok(events);
        }
        events.push(event);
    }
}

/// Makes every so manieth event name another rule than it does; how many that were.
fn falsify_events(events: &mut [DropEvent], every: usize) -> usize {
    let named = events.iter_mut().filter_map(|event| event.rule.as_mut());
    let chosen = named.step_by(every.max(1));
    chosen
        .map(|rule| Arc::make_mut(rule).number = Some(u32::MAX))
        .count()
}

/// Numbers of the lines that an error is about.
fn refused_lines(step: &Step, error: &str) -> Vec<usize> {
    let mut lines: Vec<usize> = match step.loader {
        Loader::Nft => {
            let places = error.lines().filter_map(|l| l.split_once("/dev/stdin:"));
            places
                .filter_map(|(_, rest)| rest.split(':').next()?.parse().ok())
                .collect()
        }
        _ => error
            .lines()
            .filter_map(|l| {
                l.split_once("line")
                    .and_then(|(_, rest)| rest.trim_start_matches(':').split_whitespace().next())
            })
            .filter_map(|word| word.trim_end_matches([':', ',', ')']).parse().ok())
            .collect(),
    };
    lines.sort_unstable();
    lines.dedup();
    let rule = |number: &usize| {
        let line = step.text.lines().nth(number - 1).unwrap_or_default();
        let parts = ["add rule", "add set", "add map", "-A"];
        parts.iter().any(|part| line.starts_with(part))
    };
    let table = lines.iter().find_map(|number| whole_table(step, *number));
    lines.retain(rule);
    lines.extend(table.into_iter().flatten());
    lines
}

/// The numbers of a table's rules, if the line is its COMMIT: the kernel does not say which rule
/// of a legacy table it does not take.
fn whole_table(step: &Step, number: usize) -> Option<Vec<usize>> {
    let lines: Vec<&str> = step.text.lines().collect();
    if lines.get(number - 1) != Some(&"COMMIT") {
        return None;
    }
    let before = lines.get(..number)?;
    let start = before.iter().rposition(|line| line.starts_with('*'))?;
    let rules = (start..number).filter(|i| before.get(*i).is_some_and(|l| l.starts_with("-A")));
    Some(rules.map(|i| i + 1).collect())
}

/// All that can drop.
fn known(ruleset: &Ruleset, legacy: Option<&Legacy>, case: &Case) -> Rules {
    let mut rules: Rules = HashMap::new();
    for table in &ruleset.tables {
        let family = table.family.to_string();
        let loader = match &*family {
            "ip" => Loader::IptablesNft,
            _ => Loader::Ip6tablesNft,
        };
        let by_iptables = case.steps.iter().any(|s| {
            let builtin = s
                .text
                .lines()
                .any(|l| l.strip_prefix('*') == Some(&*table.name));
            s.loader == loader && builtin
        });
        let engine = if by_iptables {
            Engine::IptablesNft
        } else {
            Engine::Nftables
        };
        for chain in &table.chains {
            let place = |by| (family.clone(), table.name.clone(), chain.name.clone(), by);
            rules.insert(
                place(By::Policy),
                Known {
                    number: 0,
                    reject: false,
                    engine,
                    needs_header: false,
                },
            );
            for (index, rule) in chain.rules.iter().enumerate() {
                let number = u32::try_from(index + 1).unwrap_or(0);
                let known = Known {
                    number,
                    reject: rule.is_reject(),
                    engine,
                    needs_header: false,
                };
                rules.insert(place(By::Handle(rule.handle)), known);
            }
        }
    }
    for (place, number, rule) in legacy.map(Legacy::all).unwrap_or_default() {
        let by = if number == 0 {
            By::Policy
        } else {
            By::Number(number.into())
        };
        let known = Known {
            number,
            reject: rule.rejects,
            engine: Engine::IptablesLegacy,
            needs_header: rule.needs_header,
        };
        rules.insert((place.0.to_owned(), place.1, place.2, by), known);
    }
    rules
}

/// The rules' counters must tell what the trace tells: of rules that count and then drop. A match
/// of xtables may drop by itself what is malformed (`hotdrop`), before the rule counts.
fn check_counters(before: &Ruleset, after: &Ruleset, drops: &[Truth]) -> Result<()> {
    let mut traced: HashMap<(&str, &str, u64), u64> = HashMap::new();
    for drop in drops {
        if let By::Handle(handle) = drop.by {
            *traced
                .entry((drop.family, &*drop.table, handle))
                .or_default() += 1;
        }
    }
    let count = |ruleset: &Ruleset| -> HashMap<(String, String, u64), (u64, bool)> {
        let mut all = HashMap::new();
        for table in &ruleset.tables {
            for rule in table.chains.iter().flat_map(|c| &c.rules) {
                if let [.., Expr::Counter(counters), _] = rule.exprs.as_slice()
                    && matches!(rule.ending(), Ending::Drop | Ending::Reject)
                {
                    let key = (table.family.to_string(), table.name.clone(), rule.handle);
                    let xt = rule.exprs.iter().any(|e| matches!(e, Expr::Match { .. }));
                    all.insert(key, (counters.packets, xt));
                }
            }
        }
        all
    };
    let before = count(before);
    for ((family, table, handle), (packets, xt)) in count(after) {
        let earlier = before.get(&(family.clone(), table.clone(), handle));
        let counted = packets - earlier.map_or(0, |e| e.0);
        let traced = traced
            .get(&(&*family, &*table, handle))
            .copied()
            .unwrap_or(0);
        ensure!(
            counted == traced || xt && counted < traced,
            "{family} {table} handle {handle} has counted {counted} packets, the trace shows {traced} dropped"
        );
    }
    Ok(())
}
