//! NFLOG in the watched namespaces: the groups, and drops that wait for their logs.
//!
//! ```text
//! groups --before each batch, and when something comes--> Nflog::hear --\
//! attributed drops ------------------------------------> Nflog::hold --+-> correlate --> Nflog::next, in order
//!                                                                       \-> Nflog::pop, attributed --> Nflog::wait --> together --> Nflog::whole
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fwtrace_abi::Record;
use jiff::Timestamp;
use tokio::{
    io::unix::AsyncFd,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep},
};
use zerocopy::FromZeros;

use super::namespaces::Namespaces;
use crate::{
    bpf::reader::RawDrop,
    cli::{Filter, Groups},
    event::{DropEvent, Event, LogRef, Logged, Verdict},
    expr::{self, Expression},
    netlink::nflog::Packet,
    netns::NetNs,
    nflog::{
        correlate::{Correlator, Dropped, Log, Sign},
        listener::{self, Listener, network, now},
        passed,
        rules::LogRules,
        together::{Part, Together},
    },
    packet::Capture,
    ruleset::snapshot::watch_readable,
    trace::{headers::Headers, join::Between},
};

/// Groups that others have are tried again this often.
const RETRY: Duration = Duration::from_secs(1);
/// A drop comes within this time of its log, nanoseconds, if the ring's reader keeps up.
const LINGER: u64 = 1_000_000_000;

/// All that is listened to.
pub(super) struct Nflog {
    wanted: Groups,
    buffer: usize,
    filter: Filter,
    expression: Option<Expression>,
    places: HashMap<u32, Place>,
    correlator: Correlator<Box<(DropEvent, RawDrop)>, Shown>,
    something: Rc<Notify>,
    retried: Instant,
    /// Since the last time that losses were told.
    lost: u64,
    account: Logged,
    heard: bool,
    order: u32,
    /// Nothing else tells of drops: logs wait for none.
    alone: bool,
    /// Those that are to be shown for themselves.
    alike: VecDeque<Heard>,
    /// The same as events, which wait for others of the same packet.
    together: Together<Event>,
    /// Logs that stand in the event of another.
    merged: u64,
}

/// A logged packet that waits for its drop.
struct Shown {
    /// The filter's conditions on packets.
    meets: bool,
    /// What is to be shown if no drop comes; `None`: nothing.
    heard: Option<Heard>,
}

/// A logged packet as it came.
pub(super) struct Heard {
    /// Inode of its network namespace.
    pub(super) netns: u32,
    /// The message's payload.
    pub(super) message: Box<[u8]>,
    /// When it was logged.
    pub(super) when: Between,
    /// When it came, wall clock.
    pub(super) received: Timestamp,
    /// The rules that logged then.
    pub(super) rules: Arc<LogRules>,
    /// Its number among the logs of the namespace.
    order: u32,
}

/// One namespace.
struct Place {
    rules: Arc<LogRules>,
    groups: BTreeMap<u16, Group>,
    /// Interfaces by index, if the filter asks for some.
    ifaces: HashMap<u32, String>,
    /// Groups that cannot be had, and that was said.
    refused: BTreeSet<u16>,
}

/// A group that is listened to.
struct Group {
    listener: Listener,
    task: JoinHandle<()>,
    /// What the last packet showed, and whether a rule is known that logs like that: most are like the one before.
    last: Option<(Sign, bool)>,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nflog {
    /// Nothing is listened to yet.
    ///
    /// `alone`: no drops will come.
    pub(super) fn new(
        wanted: Groups,
        buffer: usize,
        filter: &Filter,
        expression: Option<&Expression>,
        alone: bool,
    ) -> Self {
        Self {
            wanted,
            buffer,
            filter: filter.clone(),
            expression: expression.cloned(),
            places: HashMap::new(),
            correlator: Correlator::default(),
            something: Rc::default(),
            retried: Instant::now(),
            lost: 0,
            account: Logged::default(),
            heard: alone,
            order: 0,
            alone,
            alike: VecDeque::new(),
            together: Together::default(),
            merged: 0,
        }
    }

    /// Whether any group is wanted in these namespaces now.
    pub(super) fn is_wanted(&self, namespaces: &mut Namespaces) -> bool {
        match &self.wanted {
            Groups::Auto => namespaces
                .log_rules()
                .any(|(_, _, rules)| !rules.groups().is_empty()),
            Groups::These(groups) => !groups.is_empty(),
        }
    }

    /// The groups that are listened to, in any namespace.
    pub(super) fn groups(&self) -> BTreeSet<u16> {
        let groups = self.places.values().flat_map(|place| place.groups.keys());
        groups.copied().collect()
    }

    /// Whether nothing else tells of drops.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// The oldest logged packet that is to be shown for itself.
    pub(super) fn pop(&mut self) -> Option<Heard> {
        self.alike.pop_front()
    }

    /// Takes in what a logged packet has become, which waits for other logs of that packet. [`Nflog::whole`] gives it back.
    pub(super) fn wait(&mut self, packet: &Packet<'_>, heard: &Heard, event: Event) {
        let looks = match (&event, Headers::of_packet(network(packet))) {
            (Event::Drop(event) | Event::Log(event), Some(headers)) => {
                passed::looks(event, headers)
            }
            _ => Vec::new(),
        };
        self.together.push(Part {
            netns: heard.netns,
            looks,
            sign: Sign {
                group: packet.group,
                prefix: packet.prefix.as_deref().unwrap_or_default().into(),
                pf: u8::from(packet.family),
                hook: packet.hook,
            },
            received: packet.time,
            order: heard.order,
            came: now(),
            what: event,
        });
    }

    /// A packet with all its logs, if it need not wait any more, and how many there are; with `u64::MAX` each in turn. What became of
    /// it is what became of it behind the last rule that logged it.
    pub(super) fn whole(&mut self, now: u64) -> Option<(Event, u64)> {
        let mut events = self.together.next(now)?;
        let count = events.len() as u64;
        let mut last = events.pop()?;
        if let Event::Drop(last) | Event::Log(last) = &mut last {
            let before = events.into_iter().flat_map(|event| match event {
                Event::Drop(event) | Event::Log(event) => event.log,
                _ => Vec::new(),
            });
            last.log = before.chain(std::mem::take(&mut last.log)).collect();
        }
        Some((last, count))
    }

    /// Takes account of `logs` that were shown as one; `None`: the filter does not want what has become of the packet.
    pub(super) fn shown(&mut self, verdict: Option<Verdict>, logs: u64) {
        if !self.alone {
            return;
        }
        self.merged += verdict.map_or(0, |_| logs.saturating_sub(1));
        *match verdict {
            None => &mut self.account.filtered,
            Some(Verdict::Drop | Verdict::Reject) => &mut self.account.joined,
            Some(Verdict::Accept) => &mut self.account.passed,
            Some(Verdict::Unknown) => &mut self.account.unknown,
        } += logs;
    }

    /// Logs that were shown in the event of another, where nothing else tells of drops.
    pub(super) fn merged(&self) -> u64 {
        self.merged
    }

    /// Listens to the groups that are wanted in each namespace by now, but for those that `reserved` says are not to be had, with why.
    /// Gives lines for the user. Must run inside a `LocalSet`.
    pub(super) fn sync(
        &mut self,
        namespaces: &mut Namespaces,
        reserved: impl Fn(u32, u16) -> Option<&'static str>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        if self.wanted == Groups::NONE {
            return lines;
        }
        let retry = self.retried.elapsed() >= RETRY;
        if retry {
            self.retried = Instant::now();
        }
        let mut left = Vec::new();
        let received = self.alone || matches!(self.wanted, Groups::These(_));
        for (inode, netns, rules) in namespaces.log_rules() {
            let wanted = match &self.wanted {
                Groups::Auto => rules.groups(),
                Groups::These(groups) => groups,
            };
            let place = self.places.entry(inode).or_insert_with(|| Place {
                rules: Arc::clone(rules),
                groups: BTreeMap::new(),
                ifaces: interfaces(netns, &self.filter),
                refused: BTreeSet::new(),
            });
            if !Arc::ptr_eq(&place.rules, rules) {
                place.rules = Arc::clone(rules);
                place.ifaces = interfaces(netns, &self.filter);
                place
                    .groups
                    .values_mut()
                    .for_each(|group| group.last = None);
            }
            place.refused.retain(|group| wanted.contains(group));
            let unwanted = place.groups.keys().filter(|group| !wanted.contains(group));
            left.extend(unwanted.map(|group| (inode, *group)));
            for group in wanted {
                let refused = place.refused.contains(group);
                if place.groups.contains_key(group) || (refused && !retry) {
                    continue;
                }
                let name = format!("NFLOG group {group} of network namespace {netns}");
                let why = match reserved(inode, *group) {
                    Some(why) => why.to_owned(),
                    None => match open(netns, *group, self.buffer, received, &self.something) {
                        Ok(listener) => {
                            if refused {
                                place.refused.remove(group);
                                lines.push(format!("{name} is free; fwtrace has it now"));
                            }
                            place.groups.insert(*group, listener);
                            self.heard = true;
                            continue;
                        }
                        Err(error) => error.to_string(),
                    },
                };
                if place.refused.insert(*group) {
                    lines.push(format!(
                        "{name} cannot be listened to: {why}; drops are shown without what is logged there"
                    ));
                }
            }
        }
        for (inode, group) in left {
            self.leave(inode, group);
        }
        lines
    }

    /// Gives a group back, and takes in what the kernel still had.
    fn leave(&mut self, inode: u32, group: u16) {
        let Some(place) = self.places.get_mut(&inode) else {
            return;
        };
        if let Some(group) = place.groups.get_mut(&group) {
            group.listener.end();
        }
        self.hear();
        let place = self.places.get_mut(&inode);
        if let Some(mut group) = place.and_then(|place| place.groups.remove(&group)) {
            self.lost += group.listener.lost_last();
        }
    }

    /// Lets go of a namespace.
    pub(super) fn remove(&mut self, inode: u32) {
        let groups = self.places.get(&inode).map(|place| place.groups.keys());
        let groups: Vec<u16> = groups.into_iter().flatten().copied().collect();
        for group in groups {
            self.leave(inode, group);
        }
        self.places.remove(&inode);
    }

    /// Whether drops go straight through.
    pub(super) fn is_idle(&self) -> bool {
        self.alike.is_empty()
            && self.together.is_empty()
            && self.correlator.is_empty()
            && self.places.values().all(|place| place.groups.is_empty())
    }

    /// Whether a group was ever listened to.
    pub(super) fn has_heard(&self) -> bool {
        self.heard
    }

    /// Takes in the logged packets that are there.
    pub(super) fn hear(&mut self) {
        let Self {
            places,
            correlator,
            account,
            filter,
            expression,
            order,
            alone,
            alike,
            wanted,
            ..
        } = self;
        // Whoever names a group wants to see what is logged to it.
        let named = matches!(wanted, Groups::These(_));
        for (inode, place) in places {
            for (number, group) in &mut place.groups {
                let last = &mut group.last;
                let more = group.listener.drain(|packet, message, when| {
                    account.received += 1;
                    *order = packet.seq_global.unwrap_or(order.wrapping_add(1));
                    let meets = meets(filter, packet, &place.ifaces)
                        && accepts(expression.as_ref(), packet);
                    let heard = (meets && (*alone || named)).then(|| Heard {
                        netns: *inode,
                        message: message.into(),
                        when,
                        received: Timestamp::now(),
                        rules: Arc::clone(&place.rules),
                        order: *order,
                    });
                    if *alone {
                        match heard {
                            Some(heard) => alike.push_back(heard),
                            None => account.filtered += 1,
                        }
                        return;
                    }
                    let Some(headers) = Headers::of_packet(network(packet)) else {
                        account.unknown += 1;
                        return;
                    };
                    let (sign, expected) = sign(last, *number, packet, &place.rules);
                    correlator.log(Log {
                        netns: *inode,
                        when,
                        headers,
                        sign,
                        expected,
                        order: *order,
                        what: Shown { meets, heard },
                    });
                });
                if more {
                    self.something.notify_one();
                }
            }
        }
        self.give_up(0);
    }

    /// Takes in a drop. [`Nflog::next`] gives it back.
    pub(super) fn hold(&mut self, raw: &RawDrop, event: DropEvent) {
        let mut dropped = Dropped {
            netns: raw.record.netns,
            time: raw.record.time,
            looks: Vec::new(),
            passed: Vec::new(),
            what: Box::new((event, raw.clone())),
        };
        let place = self.places.get(&raw.record.netns);
        if let Some(place) = place.filter(|place| !place.groups.is_empty())
            && let bytes = Capture::new(&raw.record, &raw.packet).bytes
            && let Some(headers) = Headers::of_packet(bytes)
        {
            let (event, _) = &*dropped.what;
            let heard = |group| place.groups.contains_key(&group);
            dropped.passed = passed::passed(event, &place.rules, heard);
            dropped.looks = passed::looks(event, headers);
        }
        self.correlator.drop(dropped);
    }

    /// The oldest drop, with its logs, if it need not wait any more; with `u64::MAX` each in turn.
    pub(super) fn next(&mut self, now: u64) -> Option<(DropEvent, RawDrop)> {
        let joined = self.correlator.next(now)?;
        let (mut event, raw) = *joined.what;
        self.account.joined += joined.logs.len() as u64;
        self.account.missing += joined.missing as u64;
        event.log = joined
            .logs
            .into_iter()
            .map(|(sign, rule, _)| LogRef {
                group: sign.group,
                prefix: (!sign.prefix.is_empty()).then_some(sign.prefix),
                rule,
            })
            .collect();
        Some((event, raw))
    }

    /// Waits until something was logged, or the oldest drop has waited long enough.
    pub(super) async fn ready(&self) {
        let until = async {
            let deadlines = [self.correlator.deadline(), self.together.deadline()];
            match deadlines.into_iter().flatten().min() {
                Some(deadline) => {
                    sleep(Duration::from_nanos(deadline.saturating_sub(now()))).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.something.notified() => {}
            () = until => {}
        }
    }

    /// Gives up logs whose drops must have come by now, if no record is on its way.
    pub(super) fn forget(&mut self) {
        self.give_up(now().saturating_sub(LINGER));
    }

    fn give_up(&mut self, before: u64) {
        while let Some(log) = self.correlator.given_up(before) {
            match log.what.meets {
                // Thrown out before its time: nobody knows whether its drop would have come.
                _ if log.when.until >= before => self.account.unknown += 1,
                true => self.account.passed += 1,
                false => self.account.filtered += 1,
            }
            self.alike.extend(log.what.heard);
        }
    }

    /// Packets lost since the last time.
    pub(super) fn lost(&mut self) -> u64 {
        let places = self.places.values_mut();
        let groups = places.flat_map(|place| place.groups.values_mut());
        let new: u64 = groups.map(|group| group.listener.lost()).sum();
        let lost = new + std::mem::take(&mut self.lost);
        self.account.lost += lost;
        lost
    }

    /// Gives all groups back and takes in what they still had: the last drops find their logs.
    pub(super) fn end(&mut self) {
        let inodes: Vec<u32> = self.places.keys().copied().collect();
        for inode in inodes {
            self.remove(inode);
        }
    }

    /// The account, when all drops have left; `None`: nothing was listened to.
    pub(super) fn account(&mut self) -> Option<Logged> {
        self.give_up(u64::MAX);
        self.account.only = self.alone;
        self.heard.then(|| self.account.clone())
    }
}

fn open(
    netns: &NetNs,
    group: u16,
    buffer: usize,
    received: bool,
    something: &Rc<Notify>,
) -> Result<Group, listener::Error> {
    let listener = Listener::new(netns, group, buffer, received)?;
    let watched = listener.as_fd().try_clone_to_owned();
    let task = match watched.and_then(watch_readable) {
        Ok(socket) => tokio::task::spawn_local(follow(socket, Rc::clone(something))),
        Err(error) => return Err(listener::Error::Watch(error)),
    };
    Ok(Group {
        listener,
        task,
        last: None,
    })
}

/// Tells when something can be received, until the task is aborted.
async fn follow(socket: AsyncFd<OwnedFd>, something: Rc<Notify>) {
    while let Ok(mut ready) = socket.readable().await {
        ready.clear_ready();
        something.notify_one();
    }
}

/// What the packet shows of its rule, and whether a rule is known that logs like that.
fn sign(
    last: &mut Option<(Sign, bool)>,
    group: u16,
    packet: &Packet<'_>,
    rules: &LogRules,
) -> (Sign, bool) {
    let prefix = packet.prefix.as_deref().unwrap_or_default();
    let (pf, hook) = (u8::from(packet.family), packet.hook);
    if let Some((sign, expected)) = last
        && (&*sign.prefix, sign.pf, sign.hook) == (prefix, pf, hook)
    {
        return (sign.clone(), *expected);
    }
    let sign = Sign {
        group,
        prefix: prefix.into(),
        pf,
        hook,
    };
    let expected = !rules.find(group, prefix, pf, hook).is_empty();
    *last = Some((sign.clone(), expected));
    (sign, expected)
}

/// The interfaces of a namespace, if the filter asks for some.
fn interfaces(netns: &NetNs, filter: &Filter) -> HashMap<u32, String> {
    match filter.ifaces.is_empty() {
        true => HashMap::new(),
        false => netns.interfaces().unwrap_or_default().into_iter().collect(),
    }
}

/// Whether the packet meets the conditions of the filter that are about packets.
fn meets(filter: &Filter, packet: &Packet<'_>, ifaces: &HashMap<u32, String>) -> bool {
    let name = |index: Option<u32>| ifaces.get(&index?).map(String::as_str);
    let capture = Capture {
        bytes: network(packet),
        ethertype: packet.protocol,
        wire_len: 0,
        vlan: packet.vlan,
    };
    filter.selects_bytes(&capture.packet(), &[name(packet.iif), name(packet.oif)])
}

/// Whether a drop of the packet would be shown, as far as the expression goes.
fn accepts(expression: Option<&Expression>, packet: &Packet<'_>) -> bool {
    let Some(expression) = expression else {
        return true;
    };
    let bytes = network(packet);
    let mut record = Record::new_zeroed();
    record.protocol = packet.protocol.to_be();
    record.len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    record.captured = record.len;
    expression.judge(&record, bytes) != expr::Verdict::NoMatch
}
