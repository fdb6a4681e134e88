//! What targets do, and what they change.

use super::{SYN, V4, packet};
use crate::{
    eval::{
        field::{DoubtKind, Value},
        packet::{Connection, Packet, Tracking, Tuple},
        read::{Fields, Reader},
        world::World,
        xt::{
            Action, Effect,
            ct::{field, key},
            meta::MARK,
        },
    },
    xtables::{
        info::Masked,
        targets::{
            Target,
            conn::{Connmark, ConnmarkMode, Shift},
            packet::{Hops, HopsOp},
            verdict::{Nfqueue, Reject, Synproxy},
        },
    },
};

/// Runs a target, and gives what it does and the values of these fields after it.
fn run(
    target: &Target,
    packet: &Packet<'_>,
    after: &[crate::eval::field::Field],
) -> (Effect, Vec<Value>) {
    let (mut fields, world) = (Fields::default(), World::default());
    let action = Action::new(target, V4, &mut fields);
    let mut reader = Reader::new(&fields, packet, &world);
    let effect = action.run(&mut reader);
    let values = after.iter().map(|field| reader.read(*field)).collect();
    (effect, values)
}

fn code(effect: &Effect) -> Option<i32> {
    match effect {
        Effect::Verdict(verdict) => Some(verdict.code),
        Effect::Continue | Effect::Unknown(_) => None,
    }
}

#[test]
fn targets_that_decide() {
    let decide = |target: Target| run(&target, &packet(&SYN), &[]).0;
    assert_eq!(code(&decide(Target::Reject(Reject::TcpReset))), Some(0));
    let queue = Nfqueue {
        first: 7,
        total: 1,
        bypass: true,
        cpu_fanout: false,
    };
    assert_eq!(
        code(&decide(Target::Nfqueue(queue))),
        Some(7 << 16 | 0x8000 | 3)
    );
    let proxy = || {
        Target::Synproxy(Synproxy {
            options: 0,
            wscale: 0,
            mss: 0,
        })
    };
    assert_eq!(code(&decide(proxy())), Some(2), "it answers a SYN itself");
    let mut bytes = SYN;
    bytes[14 + 20 + 13] = 0x10;
    let ack = run(&proxy(), &packet(&bytes), &[]).0;
    assert!(matches!(ack, Effect::Unknown(reason) if reason.kind == DoubtKind::State));
    assert_eq!(decide(Target::Trace), Effect::Continue);
    let foreign = Target::Unknown {
        name: "FROB".into(),
        rev: 0,
        info: vec![],
    };
    assert!(
        matches!(decide(foreign), Effect::Unknown(reason) if reason.kind == DoubtKind::Missing)
    );
}

#[test]
fn targets_that_change() {
    let mark = Target::Mark(Masked {
        value: 0x10,
        mask: 0xf1,
    });
    let (effect, after) = run(&mark, &packet(&SYN), &[MARK]);
    assert_eq!((effect, after), (Effect::Continue, vec![Value::u32(0x14)]));

    let ttl = crate::eval::xt::answer::network(8, 1);
    for (op, value, expected) in [
        (HopsOp::Set, 9, 9),
        (HopsOp::Inc, 250, 255),
        (HopsOp::Dec, 70, 0),
        (HopsOp::Dec, 4, 60),
    ] {
        let (_, after) = run(&Target::Ttl(Hops { op, value }), &packet(&SYN), &[ttl]);
        assert_eq!(after, [Value::bytes(&[expected])], "{op:?} {value}");
    }

    let connection = Connection {
        info: 2,
        mark: 0xab00,
        original: Tuple::default(),
        ..Connection::default()
    };
    let tracked = Packet {
        tracking: Tracking::Connection(connection),
        ..packet(&SYN)
    };
    let connmark = |mode, shift| {
        Target::Connmark(Connmark {
            mode,
            ctmark: 1,
            ctmask: 0xff00,
            nfmask: 0xff,
            shift,
        })
    };
    let marks = [MARK, field(key::MARK)];
    for (mode, shift, expected) in [
        (ConnmarkMode::Set, None, [5, 1]),
        (ConnmarkMode::Set, Some(Shift::Left(4)), [5, 0x10]),
        (ConnmarkMode::Save, None, [5, 5]),
        (ConnmarkMode::Restore, None, [0xab00, 0xab00]),
        (ConnmarkMode::Restore, Some(Shift::Right(8)), [0xab, 0xab00]),
    ] {
        let (_, after) = run(&connmark(mode, shift), &tracked, &marks);
        assert_eq!(after, expected.map(Value::u32), "{mode:?} {shift:?}");
    }
    // Without a connection nothing happens.
    let (_, after) = run(
        &connmark(ConnmarkMode::Restore, None),
        &packet(&SYN),
        &[MARK],
    );
    assert_eq!(after, [Value::u32(5)]);
}
