//! The one way from rules to data: fields are loaded once for each packet, when a rule first asks; what was read is noted, in order;
//! what rules wrote is read back.

use std::collections::HashMap;

use super::{
    field::{Field, Reason, Value},
    load,
    packet::Packet,
    world::World,
};

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
    slots: HashMap<Field, Slot>,
}

impl Fields {
    /// The field's number; it gets one if it has none.
    pub fn slot(&mut self, field: Field) -> Slot {
        *self.slots.entry(field).or_insert_with(|| {
            let slot = Slot(self.list.len() as u32);
            self.list.push(field);
            slot
        })
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

/// What rules wrote on the way, newest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Writes(Vec<(Field, Value)>);

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
    writes: Writes,
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
            writes: Writes::default(),
            scratch: None,
        }
    }

    /// What is known beside the packet.
    pub fn world(&self) -> &'r World {
        self.world
    }

    /// The value of a field that has a number: the way for whatever runs once for each rule.
    pub fn value(&mut self, slot: Slot) -> &Value {
        &self.load(slot).value
    }

    /// The value and its first 16 bytes as a number, see [`super::field::Bytes::wide`].
    pub fn wide(&mut self, slot: Slot) -> (&Value, u128) {
        let loaded = self.load(slot);
        (&loaded.value, loaded.wide)
    }

    /// The value of any field.
    pub fn read(&mut self, field: Field) -> Value {
        if let Some(&slot) = self.fields.slots.get(&field) {
            return self.value(slot).clone();
        }
        if let Some(written) = self.written(field) {
            return written;
        }
        if let Some((_, loaded)) = self.extra.iter().find(|(known, _)| *known == field) {
            return loaded.value.clone();
        }
        let value = load::field(field, self.packet, self.world);
        self.log.push(field);
        self.extra.push((field, Loaded::new(value.clone())));
        value
    }

    /// Sets a field for the rest of the walk; [`Value::Unknown`] where the rule says nothing of the new value.
    pub fn write(&mut self, field: Field, value: Value) {
        self.writes.0.push((field, value));
    }

    /// The fields that were read, in order.
    pub fn log(&self) -> &[Field] {
        &self.log
    }

    fn load(&mut self, slot: Slot) -> &Loaded {
        let index = slot.index();
        if !self.writes.0.is_empty()
            && let Some(field) = self.fields.list.get(index)
            && let Some(written) = self.written(*field)
        {
            return self.scratch.insert(Loaded::new(written));
        }
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
            return scratch.insert(Loaded::new(Value::Unknown(Reason::missing(
                "no such field",
            ))));
        };
        place.get_or_insert_with(|| {
            log.push(field);
            Loaded::new(load::field(field, packet, world))
        })
    }

    /// What rules made of the field, if one touched it.
    fn written(&self, field: Field) -> Option<Value> {
        let (_, value) = self
            .writes
            .0
            .iter()
            .rev()
            .find(|(written, _)| *written == field)?;
        Some(value.clone())
    }
}
