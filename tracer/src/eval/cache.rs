//! Outcomes kept by what the evaluation really read, as Open vSwitch's megaflows are: packets that differ only in fields that no rule
//! looked at share an entry.
//!
//! Which field a walk reads next follows from the values of those before. So the entries are a tree: each node asks for a field, its
//! value leads to the next node, and at the end is the outcome.

use std::{collections::HashMap, sync::Arc};

use super::{
    field::{Field, Value},
    hash::BuildQuick,
    load,
    miss::Texts,
    order::{Called, Tie},
    outcome::{Known, Outcome},
    packet::{Moment, Packet},
    program::Program,
    read::Reader,
    run,
    walk::{Detail, Walk},
    world::World,
};
use crate::{ruleset::model::Ruleset, xtables::legacy::Table};

/// The most values and results that are kept; then everything is forgotten.
const MAX_KEPT: usize = 32_768;

/// The outcomes of one program.
#[derive(Debug)]
pub struct Cache {
    program: Arc<Program>,
    outcomes: Tree<Shape, Arc<Outcome>>,
    walks: Tree<(Shape, Known, Detail), Option<Arc<Walk>>>,
    world: u64,
    hits: u64,
    misses: u64,
}

/// What walks depend on that is not a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    pf: u8,
    hook: u8,
    /// What has a hook of its own.
    device: Option<u32>,
    protocol: u16,
    moment: Moment,
}

impl Shape {
    fn of(program: &Program, packet: &Packet<'_>) -> Self {
        Self {
            pf: packet.pf,
            hook: packet.hook,
            device: program.device(packet),
            protocol: packet.protocol,
            moment: packet.moment,
        }
    }
}

impl Cache {
    /// An empty one.
    pub fn new(program: Arc<Program>) -> Self {
        Self {
            program,
            outcomes: Tree::default(),
            walks: Tree::default(),
            world: 0,
            hits: 0,
            misses: 0,
        }
    }

    /// What it is of.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// [`Program::arrange`].
    pub fn arrange(
        &mut self,
        tie: &Tie<'_>,
        calls: &[Called],
        nft: Option<&Ruleset>,
        legacy: &[Table],
    ) {
        Arc::make_mut(&mut self.program).arrange(tie, calls, nft, legacy);
        self.forget();
    }

    /// [`Program::evaluate`].
    pub fn evaluate(&mut self, packet: &Packet<'_>, world: &World) -> Arc<Outcome> {
        self.follow(world);
        let shape = Shape::of(&self.program, packet);
        if let Some(outcome) = self.outcomes.get(&shape, packet, world) {
            self.hits += 1;
            return outcome.clone();
        }
        self.misses += 1;
        let mut reader = Reader::new(&self.program.fields, packet, world);
        let outcome = Arc::new(run::evaluate(&self.program, packet, &mut reader));
        self.outcomes
            .insert(shape, &reader.read_so_far(), outcome.clone());
        outcome
    }

    /// [`Program::explain`], always with the same `texts`.
    pub fn explain(
        &mut self,
        packet: &Packet<'_>,
        world: &World,
        texts: &Texts<'_>,
        known: &Known,
        detail: Detail,
    ) -> Option<Arc<Walk>> {
        self.follow(world);
        let key = (Shape::of(&self.program, packet), *known, detail);
        if let Some(walk) = self.walks.get(&key, packet, world) {
            self.hits += 1;
            return walk.clone();
        }
        self.misses += 1;
        let mut reader = Reader::new(&self.program.fields, packet, world);
        let walk = self
            .program
            .explain_with(packet, &mut reader, texts, known, detail)
            .map(Arc::new);
        self.walks.insert(key, &reader.read_so_far(), walk.clone());
        walk
    }

    /// How many answers were there already, and how many were not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// Forgets what was concluded from an older reading of the world.
    fn follow(&mut self, world: &World) {
        if self.world != world.version {
            self.forget();
            self.world = world.version;
        }
    }

    fn forget(&mut self) {
        self.outcomes = Tree::default();
        self.walks = Tree::default();
    }
}

/// See the module.
#[derive(Debug)]
struct Tree<K, T> {
    roots: HashMap<K, Link<T>, BuildQuick>,
    nodes: Vec<Node<T>>,
    kept: usize,
}

#[derive(Debug)]
struct Node<T> {
    field: Field,
    next: HashMap<Value, Link<T>, BuildQuick>,
}

#[derive(Debug)]
enum Link<T> {
    Node(u32),
    Result(T),
}

impl<K, T> Default for Tree<K, T> {
    fn default() -> Self {
        Self {
            roots: HashMap::default(),
            nodes: Vec::new(),
            kept: 0,
        }
    }
}

impl<K: std::hash::Hash + Eq, T> Tree<K, T> {
    fn get(&self, key: &K, packet: &Packet<'_>, world: &World) -> Option<&T> {
        let mut link = self.roots.get(key)?;
        loop {
            match link {
                Link::Result(result) => return Some(result),
                Link::Node(index) => {
                    let node = self.nodes.get(*index as usize)?;
                    let value = load::field(node.field, packet, world);
                    link = node.next.get(&value)?;
                }
            }
        }
    }

    /// Keeps the result of a walk that read these fields, in this order.
    fn insert(&mut self, key: K, read: &[(Field, Value)], result: T) {
        self.kept += read.len() + 1;
        if self.kept > MAX_KEPT {
            *self = Self {
                kept: read.len() + 1,
                ..Self::default()
            };
        }
        let Some(((first, _), _)) = read.split_first() else {
            self.roots.insert(key, Link::Result(result));
            return;
        };
        let Self { roots, nodes, .. } = self;
        let root = roots.entry(key).or_insert_with(|| fresh(nodes, *first));
        let Link::Node(mut at) = *root else {
            return;
        };
        let mut fields = read.iter().map(|(field, _)| *field).skip(1);
        let mut result = Some(result);
        for (_, value) in read {
            let next = match fields.next() {
                Some(field) => {
                    let known = nodes
                        .get(at as usize)
                        .is_some_and(|node| node.next.contains_key(value));
                    (!known).then(|| fresh(nodes, field))
                }
                None => result.take().map(Link::Result),
            };
            let Some(node) = nodes.get_mut(at as usize) else {
                return;
            };
            if let Some(link) = next {
                node.next.insert(value.clone(), link);
            }
            match node.next.get(value) {
                Some(Link::Node(next)) => at = *next,
                _ => return,
            }
        }
    }
}

fn fresh<T>(nodes: &mut Vec<Node<T>>, field: Field) -> Link<T> {
    let index = nodes.len() as u32;
    nodes.push(Node {
        field,
        next: HashMap::default(),
    });
    Link::Node(index)
}
