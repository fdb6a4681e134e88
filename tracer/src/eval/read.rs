//! The one way from rules to data: fields are loaded once for each packet, when a rule first asks; what was read is noted, in order;
//! what rules wrote is read back.

use std::collections::HashMap;

use super::{
    before::{Before, Derived, Opened, ones},
    clock::{self, Instant},
    field::{Field, Reason, Value},
    hash::BuildQuick,
    headers::{ETH_IPV6, IPV6},
    load::{self, ct_key, meta_key},
    overlong::Overlong,
    packet::{Moment, Packet},
    world::World,
    write::{self, Kinds},
    xt::XtField,
};
use crate::ruleset::expr::PayloadBase;

/// A field by its number in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// The fields that a program can read, numbered.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    list: Vec<Field>,
    slots: HashMap<Field, Slot, BuildQuick>,
    requested: Vec<Field>,
    needs: Needs,
    /// What the running kernel does where kernels differ.
    pub(super) overlong: Overlong,
}

/// What a program reads of the [`World`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Links and routes.
    pub links: bool,
    /// ipsets.
    pub sets: bool,
    /// The kernel's clock, which is the packet's ([`super::packet::Packet::clock`]).
    pub clock: bool,
}

impl Fields {
    /// Notes that the program reads links or routes.
    pub fn need_links(&mut self) {
        self.needs.links = true;
    }

    /// Notes that the program reads ipsets.
    pub fn need_sets(&mut self) {
        self.needs.sets = true;
    }

    /// What was noted.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// The field's number; it gets one if it has none.
    pub fn slot(&mut self, field: Field) -> Slot {
        self.requested.push(field);
        self.needs.links |= load::reads_links(field);
        self.needs.clock |= is_time(field);
        *self.slots.entry(field).or_insert_with(|| {
            let slot = Slot(self.list.len() as u32);
            self.list.push(field);
            slot
        })
    }

    /// The fields that were asked for since this was last called.
    pub(super) fn requested(&mut self) -> Vec<Field> {
        std::mem::take(&mut self.requested)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[derive(Debug, Clone)]
struct Loaded {
    value: Value,
    /// [`super::field::Bytes::wide`], where there are bytes.
    wide: u128,
}

impl Loaded {
    fn new(value: Value) -> Self {
        let wide = match &value {
            Value::Bytes(bytes) => bytes.wide(),
            Value::Break | Value::Unknown(_) => 0,
        };
        Self { value, wide }
    }
}

/// A field, as far as it was read before.
pub(super) enum Quick {
    /// Its first 16 bytes.
    Bytes(u128),
    /// It is not there.
    Break,
    /// It was not read, or is not known.
    Other,
}

/// Whether it is another one at each second.
fn is_time(field: Field) -> bool {
    matches!(
        field,
        Field::Meta(clock::TIME_NS | clock::TIME_DAY | clock::TIME_HOUR)
    )
}

fn no_such_field() -> Value {
    Value::Unknown(Reason::missing("no such field"))
}

/// Where in the hook a chain is, as far as it makes a difference to what it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Phase {
    /// Before connection tracking.
    pub(super) early: bool,
    /// As early as connection tracking: which comes first is not known.
    pub(super) with_tracking: bool,
    /// Before addresses are translated.
    pub(super) before_nat: bool,
}

/// Reads the fields of one packet for one walk.
#[derive(Debug)]
pub struct Reader<'r> {
    fields: &'r Fields,
    packet: &'r Packet<'r>,
    world: &'r World,
    loaded: Vec<Option<Loaded>>,
    log: Vec<Field>,
    /// Fields that no rule of the program has a number for.
    extra: Vec<(Field, Loaded)>,
    /// What rules wrote on the way, newest last.
    writes: Vec<(Field, Value)>,
    /// What is not known before it is written.
    open: Kinds,
    phase: Phase,
    /// Which of the seconds it is that the rules can have run at.
    instant: u8,
    /// Fields can be others than the packet itself shows: by what was written, or by where the walk is.
    special: bool,
    /// What they are then, as far as they were read since that last changed.
    view: Vec<Option<Loaded>>,
    scratch: Option<Loaded>,
}

impl<'r> Reader<'r> {
    /// A reader that has read nothing.
    pub fn new(fields: &'r Fields, packet: &'r Packet<'r>, world: &'r World) -> Self {
        Self {
            fields,
            packet,
            world,
            loaded: vec![None; fields.len()],
            log: Vec::new(),
            extra: Vec::new(),
            writes: Vec::new(),
            open: 0,
            phase: Phase::default(),
            instant: 0,
            special: fields.needs.clock,
            view: Vec::new(),
            scratch: None,
        }
    }

    /// What is known beside the packet.
    pub fn world(&self) -> &'r World {
        self.world
    }

    /// What the running kernel does with extension headers that are too long.
    pub(super) fn overlong(&self) -> Overlong {
        self.fields.overlong
    }

    /// The value of a field that has a number: the way for whatever runs once for each rule.
    pub fn value(&mut self, slot: Slot) -> &Value {
        &self.load(slot).value
    }

    /// A field that was read before.
    #[inline]
    pub(super) fn quick(&self, slot: Slot) -> Quick {
        let known = if self.special {
            &self.view
        } else {
            &self.loaded
        };
        match known.get(slot.index()) {
            Some(Some(loaded)) => match loaded.value {
                Value::Bytes(_) => Quick::Bytes(loaded.wide),
                Value::Break => Quick::Break,
                Value::Unknown(_) => Quick::Other,
            },
            _ => Quick::Other,
        }
    }

    /// Bytes of the packet that may be others than it shows, see [`write::doubtful`].
    pub(super) fn doubtful(&self) -> Option<Vec<std::ops::Range<u32>>> {
        let v6 = self.packet.protocol == ETH_IPV6;
        write::doubtful(&self.writes, self.open, v6)
    }

    /// The field, if it is not known because it is written later only, or was made of what it was then.
    pub(super) fn before(&mut self, slot: Slot, before: &Before) -> Option<Opened> {
        let field = self.field(slot)?;
        let kind = write::kind(&field);
        if kind & self.open == 0 || !self.is_there(slot) {
            return None;
        }
        let Value::Bytes(shown) = self.shown(self.in_phase(field)) else {
            return None;
        };
        let len = shown.as_slice().len() as u32;
        let writes = self.writes.iter().rev();
        let value = match writes.clone().find(|(at, _)| write::kind(at) & kind != 0) {
            None => Derived {
                and: ones(len),
                xor: 0,
            },
            Some((at, Value::Unknown(_))) if *at == field => before.written(field)?,
            Some(_) => return None,
        };
        Some(Opened { field, len, value })
    }

    /// Whether a field that a rule has changed, so that its value is not known, is there in any case.
    pub(super) fn is_there(&mut self, slot: Slot) -> bool {
        self.field(slot).is_some_and(|field| {
            let uncertain = self.phase.with_tracking && matches!(field, Field::Ct { .. });
            !uncertain
                && write::stays(&field)
                && matches!(self.shown(self.in_phase(field)), Value::Bytes(_))
        })
    }

    /// Whether the packet is untracked, as far as it shows.
    pub(super) fn is_untracked(&mut self) -> bool {
        let state = Field::Ct {
            key: ct_key::STATE,
            direction: None,
        };
        match self.shown(state) {
            Value::Unknown(_) => true,
            state => state == Value::u32(load::STATE_UNTRACKED),
        }
    }

    /// Whether connection tracking untracks the packet, if it comes by it on this hook.
    pub(super) fn is_untracked_by_kernel(&mut self) -> bool {
        const TYPE: Field = Field::Payload {
            base: PayloadBase::Transport,
            offset: 0,
            len: 1,
        };
        let mut first = |field| match self.shown(field) {
            Value::Bytes(bytes) => bytes.as_slice().first().copied(),
            Value::Break | Value::Unknown(_) => None,
        };
        let protocol = first(Field::Meta(meta_key::L4PROTO));
        let untracks = |protocol| Some(load::untracks(protocol, first(TYPE)?));
        protocol.and_then(untracks).unwrap_or(false)
    }

    /// The field that has this number.
    pub(super) fn field(&self, slot: Slot) -> Option<Field> {
        self.fields.list.get(slot.index()).copied()
    }

    /// The value and its first 16 bytes as a number, see [`super::field::Bytes::wide`].
    pub fn wide(&mut self, slot: Slot) -> (&Value, u128) {
        let loaded = self.load(slot);
        (&loaded.value, loaded.wide)
    }

    /// The value of any field.
    pub fn read(&mut self, field: Field) -> Value {
        if self.special
            && let Some(value) = self.written(field)
        {
            return value;
        }
        self.shown(self.in_phase(field))
    }

    /// Sets a field for the rest of the walk; [`Value::Unknown`] where the rule says nothing of the new value.
    pub fn write(&mut self, field: Field, value: Value) {
        self.writes.push((field, value));
        self.judge();
    }

    /// Whether the packet was taken after its addresses were translated, or that is not known.
    pub(super) fn is_translated(&mut self) -> bool {
        if self.packet.moment == Moment::Entry {
            return false;
        }
        match self.shown(Field::Translated) {
            Value::Bytes(bytes) => bytes.as_slice().first() == Some(&1),
            Value::Break | Value::Unknown(_) => true,
        }
    }

    /// A rule gave the connection its binding: in a packet that was taken before, the addresses that follow from it are not there.
    pub(super) fn translate(&mut self) {
        if self.packet.moment == Moment::Drop {
            return;
        }
        let (offset, len) = match self.packet.family() {
            IPV6 => (8, 32),
            _ => (12, 8),
        };
        let translated = Reason::missing("the address that the packet was given is not known");
        for (base, offset, len) in [
            (PayloadBase::Network, offset, len),
            (PayloadBase::Transport, 0, 4),
        ] {
            let field = Field::Payload { base, offset, len };
            self.write(field, Value::Unknown(translated.clone()));
        }
    }

    /// The fields that were read, in order, and what the packet shows for them.
    pub fn read_so_far(&self) -> Vec<(Field, Value)> {
        let value = |field: &Field| {
            let slot = self.fields.slots.get(field);
            let by_slot = slot.and_then(|slot| self.loaded.get(slot.index())?.as_ref());
            let extra = || self.extra.iter().find(|(known, _)| known == field);
            let loaded = by_slot.or_else(|| extra().map(|(_, loaded)| loaded))?;
            Some((*field, loaded.value.clone()))
        };
        self.log.iter().filter_map(value).collect()
    }

    /// Enters a base chain.
    pub(super) fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.judge();
        }
    }

    /// What was written so far.
    pub(super) fn writes(&self) -> &[(Field, Value)] {
        &self.writes
    }

    /// Goes on as another walk, in which this was written.
    pub(super) fn set_writes(&mut self, writes: Vec<(Field, Value)>) {
        self.writes = writes;
        self.judge();
    }

    /// Takes back all but the first writes.
    pub(super) fn truncate_writes(&mut self, len: usize) {
        self.writes.truncate(len);
        self.judge();
    }

    /// Whether something of this kind was written.
    pub(super) fn has_written(&self, kind: Kinds) -> bool {
        self.writes
            .iter()
            .any(|(field, _)| write::kind(field) & kind != 0)
    }

    /// What is not known before it is written.
    pub(super) fn set_open(&mut self, open: Kinds) {
        if self.open != open {
            self.open = open;
            self.judge();
        }
    }

    /// How many seconds it can have been at which the rules ran, as far as they ask for that.
    pub(super) fn instants(&mut self) -> u8 {
        match self.fields.needs.clock.then(|| self.shown(Field::Clock)) {
            Some(Value::Bytes(bytes)) => clock::count(&bytes),
            _ => 1,
        }
    }

    /// Goes on as if this one of them was it.
    pub(super) fn set_instant(&mut self, instant: u8) {
        if self.instant != instant {
            self.instant = instant;
            self.judge();
        }
    }

    /// The second at which the rules ran.
    pub(super) fn instant(&mut self) -> Result<Instant, Reason> {
        let unknown = || Reason::missing("the kernel's clock is not known");
        match self.shown(Field::Clock) {
            Value::Bytes(bytes) => Instant::new(&bytes, self.instant).ok_or_else(unknown),
            Value::Break => Err(unknown()),
            Value::Unknown(reason) => Err(reason),
        }
    }

    /// What fields are may have changed.
    fn judge(&mut self) {
        self.special = !self.writes.is_empty()
            || self.open != 0
            || self.phase != Phase::default()
            || self.fields.needs.clock;
        self.view.clear();
    }

    /// What the packet itself shows, whatever rules wrote.
    pub(super) fn shown(&mut self, field: Field) -> Value {
        if let Some(slot) = self.fields.slots.get(&field) {
            return self.shown_slot(*slot).value.clone();
        }
        if let Some((_, loaded)) = self.extra.iter().find(|(known, _)| *known == field) {
            return loaded.value.clone();
        }
        let value = load::field(field, self.packet, self.world);
        self.log.push(field);
        self.extra.push((field, Loaded::new(value.clone())));
        value
    }

    fn load(&mut self, slot: Slot) -> &Loaded {
        let index = slot.index();
        let field = match self.fields.list.get(index) {
            Some(field) if self.special => *field,
            _ => return self.shown_slot(slot),
        };
        let fresh = if matches!(self.view.get(index), Some(Some(_))) {
            None
        } else {
            let written = self.written(field);
            Some(written.unwrap_or_else(|| self.shown(self.in_phase(field))))
        };
        if self.view.is_empty() {
            self.view.resize(self.fields.len(), None);
        }
        let Self { view, scratch, .. } = self;
        match (view.get_mut(index), fresh) {
            (Some(place), Some(value)) => place.insert(Loaded::new(value)),
            (Some(Some(loaded)), None) => loaded,
            _ => scratch.insert(Loaded::new(no_such_field())),
        }
    }

    fn shown_slot(&mut self, slot: Slot) -> &Loaded {
        let index = slot.index();
        let Self {
            fields,
            packet,
            world,
            loaded,
            log,
            scratch,
            ..
        } = self;
        let (Some(place), Some(&field)) = (loaded.get_mut(index), fields.list.get(index)) else {
            // A slot of another program: nothing is known of it.
            return scratch.insert(Loaded::new(no_such_field()));
        };
        place.get_or_insert_with(|| {
            log.push(field);
            Loaded::new(load::field(field, packet, world))
        })
    }

    /// What a field means where the walk is.
    fn in_phase(&self, field: Field) -> Field {
        match field {
            Field::Ct { key, direction } if self.phase.early => Field::CtEarly { key, direction },
            Field::Payload { base, offset, len }
                if self.phase.before_nat
                    && matches!(base, PayloadBase::Network | PayloadBase::Transport) =>
            {
                Field::BeforeNat { base, offset, len }
            }
            field => field,
        }
    }

    /// What rules made of the field, if one touched it.
    fn written(&mut self, field: Field) -> Option<Value> {
        if let Field::Meta(key) = field
            && is_time(field)
        {
            let instant = self.instant();
            return Some(instant.map_or_else(Value::Unknown, |instant| instant.meta(key)));
        }
        if !self.writes.is_empty() {
            let writes = std::mem::take(&mut self.writes);
            let shown = self.in_phase(field);
            let value = write::effect(&writes, &field, self.packet.protocol == ETH_IPV6, || {
                self.shown(shown)
            });
            self.writes = writes;
            if value.is_some() {
                return value;
            }
        }
        let kind = match field {
            // See `doubtful`.
            Field::Xt(XtField::Chunk(_)) => 0,
            field => write::kind(&field),
        };
        if self.phase.with_tracking && matches!(field, Field::Ct { .. }) {
            return Some(Value::Unknown(Reason::order(
                "whether tracking comes before this chain is not known",
            )));
        }
        let open = kind & self.open;
        if open == write::CT_STATE
            && let Field::Ct { key, .. } = field
            && (self.phase.early || !self.is_untracked_by_kernel())
        {
            return Some(load::before_untracked(key));
        }
        (open != 0).then(|| Value::Unknown(write::reason(open)))
    }
}
