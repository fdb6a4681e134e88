//! A field's value, from the packet and the world.

use super::{
    field::{Field, Reason, Value},
    packet::Packet,
    world::World,
    xt,
};

/// The value of the field in this packet.
pub(super) fn field(field: Field, packet: &Packet<'_>, world: &World) -> Value {
    match field {
        Field::Xt(field) => xt::load(field, packet, world),
        _ => Value::Unknown(Reason::missing("not evaluated")),
    }
}
