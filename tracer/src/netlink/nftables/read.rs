//! The whole ruleset of a network namespace, of one moment.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

use super::{
    decode::{
        Generation, Located, decode_chain, decode_elements, decode_flowtable, decode_generation,
        decode_object, decode_rule, decode_set, decode_set_count, decode_table,
    },
    kind,
};
use crate::{
    netlink::{
        attr::{AttrError, Writer},
        socket::{Message, Socket, SocketError, flags, message},
    },
    ruleset::model::{Element, Family, Ruleset, Set, Table},
    xtables::save::is_iptables,
};

/// Readings that a busy ruleset may spoil before [`read_ruleset`] gives up.
const TRIES: u32 = 20;

/// Why a ruleset could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The socket, or the kernel's answer. `EOPNOTSUPP` or `EINVAL`: the kernel has no nf_tables.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The generation, or a request's own attributes, are malformed.
    #[error("nf_tables: {0}")]
    Attribute(#[from] AttrError),
    /// The kernel did not answer the question for the generation.
    #[error("nf_tables: the kernel does not tell the generation")]
    NoGeneration,
    /// Every reading was spoiled by a change.
    #[error("nf_tables: the ruleset changed during each of {tries} readings (last: {last})")]
    Unsettled {
        /// How often it was tried.
        tries: u32,
        /// What spoiled the last reading.
        last: String,
    },
}

/// What a try at reading ended with, if not with a ruleset.
enum Spoiled {
    /// Worth another try.
    Changed(String),
    Failed(ReadError),
}

impl From<SocketError> for Spoiled {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Interrupted | SocketError::Overrun => Self::Changed(error.to_string()),
            other => Self::Failed(other.into()),
        }
    }
}

impl From<AttrError> for Spoiled {
    fn from(error: AttrError) -> Self {
        Self::Failed(error.into())
    }
}

/// The namespace's current generation (one request, microseconds).
pub fn read_generation(socket: &mut Socket) -> Result<u32, ReadError> {
    let request = request(socket, kind::GETGEN, 0, flags::ACK, &[])?;
    let mut generation = None;
    socket.query(&request, |message| {
        if message.kind == kind::NEWGEN {
            generation = Some(decode_generation(message.payload));
        }
    })?;
    let Generation { id, .. } = generation.ok_or(ReadError::NoGeneration)??;
    Ok(id)
}

/// Reads tables, chains, rules, sets with their elements, objects and flowtables of all families.
///
/// The result is of one moment: the generation is read before and after, and the whole is read again when it differs or the kernel
/// says that a dump was interrupted. Blocks for as long as the kernel takes: some milliseconds for thousands of rules.
///
/// `socket` must be a [`Protocol::Netfilter`](crate::netlink::socket::Protocol::Netfilter) one without multicast groups. Needs CAP_NET_ADMIN.
pub fn read_ruleset(socket: &mut Socket) -> Result<Ruleset, ReadError> {
    let mut last = String::new();
    for _ in 0..TRIES {
        match try_read(socket) {
            Ok(ruleset) => return Ok(ruleset),
            Err(Spoiled::Changed(reason)) => last = reason,
            Err(Spoiled::Failed(error)) => return Err(error),
        }
    }
    Err(ReadError::Unsettled { tries: TRIES, last })
}

fn try_read(socket: &mut Socket) -> Result<Ruleset, Spoiled> {
    let generation = read_generation(socket).map_err(failed)?;
    let result = read_parts(socket);
    let after = read_generation(socket).map_err(failed)?;
    if after != generation {
        // An error (a set that was gone when its elements were asked for) is then one of the change.
        return Err(Spoiled::Changed(format!(
            "generation {generation} became {after}"
        )));
    }
    let (tables, problems) = result?;
    Ok(Ruleset {
        generation,
        tables,
        problems,
    })
}

fn failed(error: ReadError) -> Spoiled {
    match error {
        ReadError::Socket(error) => error.into(),
        other => Spoiled::Failed(other),
    }
}

fn read_parts(socket: &mut Socket) -> Result<(Vec<Table>, Vec<String>), Spoiled> {
    let mut parts = Parts::default();
    dump(socket, kind::GETTABLE, |m| match decode_table(m.payload) {
        Ok(table) => parts.add_table(table),
        Err(error) => parts.problem("a table", error),
    })?;
    dump(socket, kind::GETCHAIN, |m| match decode_chain(m.payload) {
        Ok(chain) => parts.add(chain, |table, chain| table.chains.push(chain)),
        Err(error) => parts.problem("a chain", error),
    })?;
    dump(socket, kind::GETRULE, |m| parts.add_rule(m.payload))?;
    dump(socket, kind::GETSET, |m| match decode_set(m.payload) {
        Ok(set) => {
            if let Ok(Some(count)) = decode_set_count(m.payload) {
                let key = (set.family, set.table.to_owned(), set.item.name.clone());
                parts.counts.insert(key, count);
            }
            parts.add(set, |table, set| table.sets.push(set));
        }
        Err(error) => parts.problem("a set", error),
    })?;
    dump(socket, kind::GETOBJ, |m| match decode_object(m.payload) {
        Ok(object) => parts.add(object, |table, object| table.objects.push(object)),
        Err(error) => parts.problem("an object", error),
    })?;
    dump(socket, kind::GETFLOWTABLE, |m| {
        match decode_flowtable(m.payload) {
            Ok(found) => parts.add(found, |table, flowtable| table.flowtables.push(flowtable)),
            Err(error) => parts.problem("a flowtable", error),
        }
    })?;
    let mut problems = parts.problems;
    for table in &mut parts.tables {
        for set in &mut table.sets {
            let count = parts
                .counts
                .get(&(table.family, table.name.clone(), set.name.clone()));
            if let Some(problem) =
                read_elements(socket, table.family, &table.name, set, count.copied())?
            {
                let (set, family, table) = (&set.name, table.family, &table.name);
                problems.push(format!("{problem} of set {set} in table {family} {table}"));
            }
        }
        table.iptables = is_iptables(table);
    }
    Ok((parts.tables, problems))
}

/// Reads a set's elements; the result says what could not be read. `count` is how many the kernel says there are.
///
/// The kernel resizes hash sets behind the scenes, and a dump meanwhile misses some elements and gives others twice (seen on v6.18 with
/// 50,000 elements just added), so that it is tried again until all are there.
fn read_elements(
    socket: &mut Socket,
    family: Family,
    table: &str,
    set: &mut Set,
    count: Option<u32>,
) -> Result<Option<String>, Spoiled> {
    let attributes = Writer::new().str(1, table).str(2, &set.name).finish()?;
    // Elements of these may come and go by themselves; in interval sets the kernel does not count the ends of ranges.
    let steady = set.flags & (Set::TIMEOUT | Set::EVAL | Set::INTERVAL) == 0;
    let count = count
        .and_then(|count| usize::try_from(count).ok())
        .filter(|_| steady);
    let mut last = None;
    for _ in 0..TRIES {
        let request = request(
            socket,
            kind::GETSETELEM,
            family.into(),
            flags::DUMP,
            &attributes,
        )?;
        let mut broken = 0;
        set.elements.clear();
        socket.query(&request, |m| match decode_elements(m.payload) {
            Ok(Located {
                item: (_, found), ..
            }) => {
                set.elements.extend(found.elements);
                broken += found.broken;
            }
            Err(_) => broken += 1,
        })?;
        if broken > 0 {
            return Ok(Some(format!("{broken} elements")));
        }
        let twice = has_duplicates(set);
        let length = set.elements.len();
        // The kernel counts elements of a transaction that is not committed yet, too: the same again is all there is.
        let missing = count.is_some_and(|count| length < count) && last != Some(length);
        if !twice && !missing {
            return Ok(None);
        }
        last = (!twice).then_some(length);
    }
    Ok(Some("some elements".to_owned()))
}

/// Whether an element is there twice. A range of one address in an interval set has its key twice, as start and as end.
fn has_duplicates(set: &Set) -> bool {
    let mut seen = HashSet::with_capacity(set.elements.len());
    set.elements.iter().any(|element| {
        let end = element.flags & Element::INTERVAL_END;
        !seen.insert((element.key.as_deref(), element.key_end.as_deref(), end))
    })
}

fn dump(socket: &mut Socket, kind: u16, each: impl FnMut(&Message<'_>)) -> Result<(), Spoiled> {
    let request = request(socket, kind, 0, flags::DUMP, &[])?;
    Ok(socket.query(&request, each)?)
}

/// A request's bytes; `attributes` follow `struct nfgenmsg`.
fn request(
    socket: &mut Socket,
    kind: u16,
    family: u8,
    extra: u16,
    attributes: &[u8],
) -> Result<Vec<u8>, AttrError> {
    let body = Writer::new()
        .raw(&[family, 0, 0, 0])
        .raw(attributes)
        .finish()?;
    Ok(message(
        kind,
        flags::REQUEST | extra,
        socket.next_seq(),
        &body,
    ))
}

/// The ruleset while its parts come in.
#[derive(Default)]
struct Parts {
    tables: Vec<Table>,
    problems: Vec<String>,
    /// Index of a table by family and name.
    table_index: HashMap<(Family, String), usize>,
    /// Number of elements by family, table and set, where the kernel tells it.
    counts: HashMap<(Family, String, String), u32>,
    /// Where the last rule went: rules come chain by chain.
    last_chain: (usize, usize),
}

impl Parts {
    fn problem(&mut self, what: &str, error: AttrError) {
        self.problems
            .push(format!("{what} could not be read: {error}"));
    }

    fn add_table(&mut self, table: Table) {
        self.table_index
            .insert((table.family, table.name.clone()), self.tables.len());
        self.tables.push(table);
    }

    fn add<T>(&mut self, part: Located<'_, T>, add: impl FnOnce(&mut Table, T)) {
        let index = self
            .table_index
            .get(&(part.family, part.table.to_owned()))
            .copied();
        match index.and_then(|index| self.tables.get_mut(index)) {
            Some(table) => add(table, part.item),
            None => self.lost(part.family, part.table),
        }
    }

    fn lost(&mut self, family: Family, table: &str) {
        self.problems.push(format!(
            "something of table {family} {table}, which is not listed"
        ));
    }

    fn add_rule(&mut self, payload: &[u8]) {
        let Located {
            family,
            table,
            item: (chain, mut rule),
        } = match decode_rule(payload) {
            Ok(rule) => rule,
            Err(error) => return self.problem("a rule", error),
        };
        let fits = self.tables.get(self.last_chain.0).is_some_and(|candidate| {
            candidate.family == family
                && candidate.name == table
                && candidate
                    .chains
                    .get(self.last_chain.1)
                    .is_some_and(|c| c.name == chain)
        });
        if !fits {
            let place = self
                .table_index
                .get(&(family, table.to_owned()))
                .copied()
                .and_then(|t| {
                    let chains = &self.tables.get(t)?.chains;
                    Some((
                        t,
                        chains
                            .iter()
                            .position(|candidate| candidate.name == chain)?,
                    ))
                });
            let Some(place) = place else {
                return self.lost(family, table);
            };
            self.last_chain = place;
        }
        let (t, c) = self.last_chain;
        if let Some(chain) = self
            .tables
            .get_mut(t)
            .and_then(|table| table.chains.get_mut(c))
        {
            rule.number = u32::try_from(chain.rules.len() + 1).unwrap_or(u32::MAX);
            chain.rules.push(rule);
        }
    }
}
