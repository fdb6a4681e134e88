//! What each expression does to registers, and what sets find.

use super::*;

#[test]
fn registers_alias() {
    // 16-byte register 1 is 8 to 11, register 2 is 12 to 15.
    let load = |dreg, offset| Expr::Payload {
        dreg,
        base: PayloadBase::Network,
        offset,
        len: 4,
    };
    let compare = |sreg, data: &[u8]| Expr::Cmp {
        sreg,
        op: CmpOp::Eq,
        data: data.to_vec(),
    };
    let both = vec![
        load(1, 12),
        load(9, 16),
        compare(8, &[10, 1, 0, 1, 10, 1, 0, 2]),
        compare(1, &[10, 1, 0, 1]),
        compare(9, &[10, 1, 0, 2]),
    ];
    assert_eq!(holds(both), Some(true));
    assert_eq!(
        holds(vec![load(12, 16), compare(2, &[10, 1, 0, 2])]),
        Some(true)
    );
    // Nothing is known of a register that nothing was loaded into.
    assert_eq!(holds(vec![load(1, 12), compare(2, &[10, 1, 0, 1])]), None);
}

#[test]
fn comparisons_are_of_bytes() {
    for (op, data, expected) in [
        (CmpOp::Eq, [0, 53], true),
        (CmpOp::Neq, [0, 53], false),
        (CmpOp::Lt, [0, 54], true),
        (CmpOp::Lt, [0, 53], false),
        (CmpOp::Lte, [0, 53], true),
        (CmpOp::Gt, [0, 52], true),
        (CmpOp::Gt, [0, 53], false),
        (CmpOp::Gte, [0, 53], true),
        (CmpOp::Gte, [1, 0], false),
    ] {
        assert_eq!(
            holds(vec![dport(), cmp(op, &data)]),
            Some(expected),
            "{op:?}"
        );
        // The same without the quick way, with the register still in use.
        let slow = vec![dport(), cmp(op, &data), byteorder(2, 2), eq(&[53, 0])];
        assert_eq!(holds(slow), Some(expected), "{op:?}");
    }
    let range = |invert| Expr::Range {
        sreg: 1,
        invert,
        from: vec![0, 50],
        to: vec![0, 53],
    };
    assert_eq!(holds(vec![dport(), range(false)]), Some(true));
    assert_eq!(holds(vec![dport(), range(true)]), Some(false));
}

fn byteorder(len: u32, size: u32) -> Expr {
    Expr::Byteorder {
        sreg: 1,
        dreg: 1,
        op: 0,
        len,
        size,
    }
}

#[test]
fn operations_on_registers() {
    let bitwise = |op, mask: &[u8], xor: &[u8], data: &[u8]| Expr::Bitwise {
        sreg: 1,
        sreg2: None,
        dreg: 1,
        len: 8,
        op,
        mask: mask.to_vec(),
        xor: xor.to_vec(),
        data: data.to_vec(),
    };
    let eight = || payload(PayloadBase::Network, 12, 8);
    let masked = bitwise(0, &[0xff; 8], &[1, 0, 0, 0, 0, 0, 0, 1], &[]);
    assert_eq!(
        holds(vec![eight(), masked, eq(&[11, 1, 0, 1, 10, 1, 0, 3])]),
        Some(true)
    );
    // Shifts carry from word to word; words are in host order, the first word highest.
    let source = [0x8000_0001_u32, 0xc000_0003];
    let bytes: Vec<u8> = source.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let load = || Expr::Immediate {
        dreg: 1,
        data: Data::Value(bytes.clone()),
    };
    for (op, shift, expected) in [
        (1, 4, [0x0000_001c_u32, 0x0000_0030]),
        (2, 4, [0x0800_0000, 0x1c00_0000]),
        (1, 0, source),
        (2, 0, source),
    ] {
        let shift = bitwise(op, &[], &[], &u32::to_ne_bytes(shift));
        let expected: Vec<u8> = expected
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(
            holds(vec![load(), shift, eq(&expected)]),
            Some(true),
            "{op}"
        );
    }
    for (op, expected) in [
        (3, [10, 1, 0, 0]),
        (4, [255, 255, 1, 1]),
        (5, [245, 254, 1, 1]),
    ] {
        let with = bitwise(op, &[], &[], &[255, 255, 1, 0, 0, 0, 0, 0]);
        let expected = match op {
            3 => [10, 1, 0, 0],
            4 => [255, 255, 1, 1],
            _ => expected,
        };
        assert_eq!(
            holds(vec![eight(), with, eq(&expected)]),
            Some(true),
            "{op}"
        );
    }
    for (size, expected) in [
        (2, [1, 10, 1, 0, 1, 10, 2, 0]),
        (4, [1, 0, 1, 10, 2, 0, 1, 10]),
        (8, [2, 0, 1, 10, 1, 0, 1, 10]),
    ] {
        assert_eq!(
            holds(vec![eight(), byteorder(8, size), eq(&expected)]),
            Some(true),
            "{size}"
        );
    }
}

fn in_set(set: Set, flags: u32) -> Vec<Fate> {
    let lookup = Expr::Lookup {
        set: "s".to_owned(),
        sreg: 1,
        dreg: None,
        flags,
    };
    let base = chain(
        "in",
        Some((1, 0, 1)),
        vec![vec![dport(), lookup, verdict(0)]],
    );
    let outcome = evaluate(&ruleset(vec![table(vec![base], vec![set])]), &packet());
    outcome.ends.iter().map(|end| end.fate).collect()
}

#[test]
fn sets() {
    const END: u32 = Element::INTERVAL_END;
    let hash = || set(0, vec![element(&[0, 80], 0), element(&[0, 53], 0)]);
    assert_eq!(in_set(hash(), 0), [Fate::Drop]);
    assert_eq!(in_set(hash(), 1), [Fate::Accept]);
    // 50 to 52, and 53 on: where one ends the next starts. In the kernel's order, which is any.
    let adjacent = vec![
        element(&[0, 53], END),
        element(&[0, 53], 0),
        element(&[0, 50], 0),
        element(&[0, 0], END),
    ];
    assert_eq!(in_set(set(Set::INTERVAL, adjacent), 0), [Fate::Drop]);
    let below = vec![element(&[0, 50], 0), element(&[0, 53], END)];
    assert_eq!(in_set(set(Set::INTERVAL, below), 0), [Fate::Accept]);
    let open = vec![element(&[0, 50], 0)];
    assert_eq!(in_set(set(Set::INTERVAL, open), 0), [Fate::Drop]);
    let ranged = Element {
        key_end: Some(vec![0, 60]),
        ..element(&[0, 50], 0)
    };
    assert_eq!(in_set(set(Set::INTERVAL, vec![ranged]), 0), [Fate::Drop]);
    let expiring = Element {
        timeout: Some(1000),
        expiration: Some(500),
        ..element(&[0, 53], 0)
    };
    assert_eq!(in_set(set(Set::TIMEOUT, vec![expiring]), 0).len(), 2);
    let catch_all = Element {
        flags: Element::CATCHALL,
        ..Element::default()
    };
    assert_eq!(in_set(set(0, vec![catch_all]), 0), [Fate::Drop]);
    // Rules fill it: what is not in it may be by now.
    assert_eq!(
        in_set(set(Set::EVAL, vec![element(&[0, 1], 0)]), 0).len(),
        2
    );
    assert_eq!(
        in_set(set(Set::EVAL, vec![element(&[0, 53], 0)]), 0),
        [Fate::Drop]
    );
}

#[test]
fn an_unknown_key_of_a_verdict_map_leads_everywhere() {
    let mut map = set(Set::MAP, Vec::new());
    map.data_type = Some(Set::VERDICT);
    for (port, code) in [(1, 0), (2, 1), (3, 0)] {
        map.elements.push(Element {
            data: Some(Data::Verdict(Verdict { code, chain: None })),
            ..element(&[0, port], 0)
        });
    }
    let lookup = Expr::Lookup {
        set: "s".to_owned(),
        sreg: 1,
        dreg: Some(0),
        flags: 0,
    };
    let base = chain("in", Some((1, 0, 1)), vec![vec![dport(), lookup]]);
    let cut = Packet {
        bytes: &UDP[..20],
        ..packet()
    };
    let outcome = evaluate(&ruleset(vec![table(vec![base], vec![map])]), &cut);
    let mut fates: Vec<Fate> = outcome.ends.iter().map(|end| end.fate).collect();
    fates.sort_by_key(|fate| fate.is_drop());
    assert_eq!(fates, [Fate::Accept, Fate::Drop]);
}
