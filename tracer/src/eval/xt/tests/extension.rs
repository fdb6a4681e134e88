//! Extension headers of IPv6 that were not captured, or that are longer than their packet.

use std::net::Ipv6Addr;

use super::{
    super::{
        super::{
            overlong::{Overlong, Reaction},
            packet::Packet,
            read::{Fields, Reader},
            world::World,
        },
        Answer, Matcher, Place,
    },
    is_unknown,
};
use crate::xtables::{
    Family,
    info::{Cond, Span},
    matches::{
        Match,
        icmp::Spi,
        ipv6::{Ah6, Frag, Ipv6Header, Ipv6Option, Mh, Options, Rt},
    },
};

const ANY: Cond<Span<u32>> = Cond::new(Span::new(0, u32::MAX), false);

/// An IPv6 packet without a link-layer header: what the first header is, and what follows the 40 bytes.
fn packet(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
    bytes.extend([0; 32]);
    bytes.extend(rest);
    bytes
}

/// The answer where `captured` bytes of the packet were captured, of a kernel of which nothing is known.
fn cut(what: &Match, bytes: &[u8], captured: usize) -> Answer {
    of_kernel(Overlong::default(), what, bytes, captured)
}

fn of_kernel(overlong: Overlong, what: &Match, bytes: &[u8], captured: usize) -> Answer {
    let packet = Packet {
        bytes: &bytes[..captured],
        len: bytes.len() as u32,
        pf: 10,
        protocol: 0x86dd,
        ..Packet::default()
    };
    let place = Place {
        family: Family::V6,
        hook: None,
    };
    let (mut fields, world) = (Fields::default(), World::default());
    let matcher = Matcher::new(what, place, &mut fields);
    fields.overlong = overlong;
    matcher.test(&mut Reader::new(&fields, &packet, &world))
}

fn test(what: &Match, next: u8, rest: &[u8]) -> Answer {
    let bytes = packet(next, rest);
    cut(what, &bytes, bytes.len())
}

fn options(length: Option<u32>, options: Option<&[(u8, Option<u8>)]>) -> Options {
    let option = |&(kind, length)| Ipv6Option { kind, length };
    Options {
        length: length.map(|length| Cond::new(length, false)),
        options: options.map(|all| all.iter().map(option).collect()),
        not_strict: false,
    }
}

const PADDED: [u8; 8] = [6, 0, 1, 4, 0, 0, 0, 0];

#[test]
fn options_in_their_order() {
    let alert = [6, 0, 0, 5, 2, 0, 0, 0];
    for (want, header, expected) in [
        (options(None, None), &PADDED[..], Answer::Match),
        (options(Some(8), None), &PADDED, Answer::Match),
        (options(Some(16), None), &PADDED, Answer::Miss),
        (options(None, Some(&[(1, Some(4))])), &PADDED, Answer::Match),
        (options(None, Some(&[(1, Some(3))])), &PADDED, Answer::Miss),
        (options(None, Some(&[(1, None)])), &PADDED, Answer::Match),
        // There is nothing behind it.
        (
            options(None, Some(&[(1, None), (1, None)])),
            &PADDED,
            Answer::Miss,
        ),
        (
            options(None, Some(&[(0, None), (5, Some(2)), (0, None)])),
            &alert,
            Answer::Match,
        ),
        (options(None, Some(&[(5, Some(2))])), &alert, Answer::Miss),
        // The last one that is asked for may be longer than its header.
        (
            options(None, Some(&[(1, Some(90))])),
            &[6, 0, 1, 90, 0, 0, 0, 0],
            Answer::Match,
        ),
    ] {
        assert_eq!(test(&Match::Hbh(want.clone()), 0, header), expected);
        assert_eq!(test(&Match::Dst(want.clone()), 60, header), expected);
        assert_eq!(test(&Match::Dst(want), 0, header), Answer::Miss, "no such");
    }
    let both = options(None, Some(&[(1, None), (1, None)]));
    let overlong = test(&Match::Hbh(both), 0, &[6, 0, 1, 90, 0, 0, 0, 0]);
    assert!(is_unknown(&overlong, false), "{overlong:?}");
}

#[test]
fn a_header_that_is_cut_is_dropped_or_not_known() {
    let any = Match::Hbh(options(None, None));
    // The packet ends in it.
    assert_eq!(test(&any, 0, &[6]), Answer::Drop);
    // Kernels differ where the header says that it is longer than the packet.
    assert!(is_unknown(&test(&any, 0, &[6, 1, 1, 4, 0, 0, 0, 0]), false));
    // Not captured is not cut.
    let bytes = packet(0, &PADDED);
    assert!(is_unknown(&cut(&any, &bytes, 40), false));
    assert_eq!(cut(&any, &bytes, 42), Answer::Match);
    let asked = Match::Hbh(options(None, Some(&[(1, None)])));
    assert!(is_unknown(&cut(&asked, &bytes, 42), false));
    // An extension header before it, and none at all.
    let behind = [&[60, 0, 1, 4, 0, 0, 0, 0], &PADDED[..]].concat();
    assert_eq!(
        test(&Match::Dst(options(None, None)), 0, &behind),
        Answer::Match
    );
    assert_eq!(test(&any, 6, &[0; 20]), Answer::Miss);
}

/// Kernels of before July 2026, and those that drop all such packets.
const OLD: Overlong = Overlong {
    options: Some(Reaction::Misses),
    option: Some(Reaction::Misses),
    route: Some(Reaction::Misses),
    authentication: Some(Reaction::Overlooks),
    headers: Some(Reaction::Overlooks),
    stub: Some(Reaction::Misses),
    esp_stub: Some(Reaction::Misses),
};
const NEW: Overlong = Overlong {
    options: Some(Reaction::Drops),
    option: Some(Reaction::Drops),
    route: Some(Reaction::Drops),
    authentication: Some(Reaction::Drops),
    headers: Some(Reaction::Drops),
    stub: Some(Reaction::Drops),
    esp_stub: Some(Reaction::Overlooks),
};

#[test]
fn what_the_kernel_does_where_there_is_no_room() {
    let headers = |headers: u8, inverted: bool| {
        Match::Ipv6Header(Ipv6Header {
            headers: Cond::new(headers, inverted),
            soft: false,
        })
    };
    let both = Match::Hbh(options(None, Some(&[(1, None), (1, None)])));
    let spi = |spi: u32| {
        Match::Ah6(Ah6 {
            spi: Cond::new(Span::new(spi, spi), false),
            length: Cond::new(24, false),
            reserved: false,
        })
    };
    let route = Match::Rt(Rt {
        flags: 0,
        kind: Cond::new(0, false),
        segments_left: ANY,
        length: Cond::new(0, false),
        addresses: Vec::new(),
    });
    let long = &[6, 1, 1, 4, 0, 0, 0, 0][..];
    let authentication = &[6, 4, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1][..];
    for (what, next, rest, old, new) in [
        (
            Match::Hbh(options(None, None)),
            0,
            long,
            Answer::Miss,
            Answer::Drop,
        ),
        (
            Match::Dst(options(Some(8), None)),
            60,
            long,
            Answer::Miss,
            Answer::Drop,
        ),
        (
            both,
            0,
            &[6, 0, 1, 90, 0, 0, 0, 0],
            Answer::Miss,
            Answer::Drop,
        ),
        (route, 43, long, Answer::Miss, Answer::Drop),
        (spi(7), 51, authentication, Answer::Match, Answer::Drop),
        (spi(8), 51, authentication, Answer::Miss, Answer::Drop),
        (headers(0x81, false), 0, long, Answer::Match, Answer::Drop),
        (headers(0x80, false), 0, long, Answer::Miss, Answer::Drop),
        // What says that nothing follows, or ESP, is believed without a bit of its own.
        (
            headers(0x80, false),
            0,
            &[59, 1, 1, 4, 0, 0, 0, 0],
            Answer::Match,
            Answer::Drop,
        ),
        (
            headers(0x80, false),
            0,
            &[50, 1, 1, 4, 0, 0, 0, 0],
            Answer::Match,
            Answer::Drop,
        ),
        // No header is read: no match, turned round or not.
        (headers(0x80, false), 0, &[6], Answer::Miss, Answer::Drop),
        (headers(0x80, true), 0, &[6], Answer::Miss, Answer::Drop),
        (headers(4, false), 50, &[0], Answer::Miss, Answer::Match),
        (headers(4, true), 50, &[0], Answer::Miss, Answer::Miss),
    ] {
        let bytes = packet(next, rest);
        let on = |kernel| of_kernel(kernel, &what, &bytes, bytes.len());
        assert!(
            is_unknown(&on(Overlong::default()), false),
            "{what:?} {rest:?}"
        );
        assert_eq!(on(OLD), old, "{what:?} {rest:?}");
        assert_eq!(on(NEW), new, "{what:?} {rest:?}");
    }
}

#[test]
fn headers_longer_than_what_one_field_holds() {
    let mut header = vec![6, 12, 30, 98];
    header.resize(102, 7);
    header.extend([5, 0]);
    let want = Match::Dst(options(Some(104), Some(&[(30, None), (5, Some(0))])));
    let bytes = packet(60, &header);
    assert_eq!(cut(&want, &bytes, bytes.len()), Answer::Match);
    assert!(is_unknown(&cut(&want, &bytes, bytes.len() - 1), false));
}

#[test]
fn fragments() {
    let frag = |flags: u8, min: u32| {
        Match::Frag(Frag {
            id: Cond::new(Span::new(min, u32::MAX), false),
            length: Cond::new(0, false),
            flags,
        })
    };
    let header = |word: u8, reserved: u8| [17, reserved, 0, word, 0, 0, 1, 0];
    for (flags, min, word, reserved, expected) in [
        (0, 0, 0, 0, Answer::Match),
        (0, 256, 0, 0, Answer::Match),
        (0, 257, 0, 0, Answer::Miss),
        (Frag::FIRST, 0, 1, 0, Answer::Match),
        (Frag::FIRST, 0, 8, 0, Answer::Miss),
        (Frag::MORE, 0, 9, 0, Answer::Match),
        (Frag::MORE, 0, 8, 0, Answer::Miss),
        (Frag::LAST, 0, 8, 0, Answer::Match),
        (Frag::LAST, 0, 9, 0, Answer::Miss),
        (Frag::RESERVED, 0, 9, 0, Answer::Match),
        (Frag::RESERVED, 0, 2, 0, Answer::Miss),
        (Frag::RESERVED, 0, 0, 1, Answer::Miss),
    ] {
        let what = frag(flags, min);
        assert_eq!(test(&what, 44, &header(word, reserved)), expected);
    }
    // Behind a later fragment's header no other header is looked for.
    let later = [&[60, 0, 0, 8, 0, 0, 0, 9], &PADDED[..]].concat();
    assert_eq!(test(&frag(0, 0), 44, &later), Answer::Match);
    assert_eq!(
        test(&Match::Dst(options(None, None)), 44, &later),
        Answer::Miss
    );
    assert_eq!(test(&frag(0, 0), 44, &header(0, 0)[..6]), Answer::Drop);
}

#[test]
fn routes() {
    let (a, b) = (Ipv6Addr::from(1), Ipv6Addr::from(2));
    let rt = |flags: u8, addresses: &[Ipv6Addr]| {
        Match::Rt(Rt {
            flags: flags | Rt::KIND,
            kind: Cond::new(0, false),
            segments_left: ANY,
            length: Cond::new(40, false),
            addresses: addresses.to_vec(),
        })
    };
    let header = [&[6, 4, 0, 1, 0, 0, 0, 0], &a.octets()[..], &b.octets()].concat();
    let loose = Rt::ADDRESSES | Rt::NOT_STRICT;
    for (flags, addresses, expected) in [
        (0, &[][..], Answer::Match),
        (Rt::LENGTH, &[], Answer::Match),
        (Rt::RESERVED, &[], Answer::Match),
        (Rt::ADDRESSES, &[a, b], Answer::Match),
        (Rt::ADDRESSES, &[a], Answer::Miss),
        (Rt::ADDRESSES, &[b, a], Answer::Miss),
        (Rt::ADDRESSES, &[a, b, b], Answer::Miss),
        (loose, &[b], Answer::Match),
        (loose, &[a, b], Answer::Match),
        (loose, &[b, a], Answer::Miss),
    ] {
        assert_eq!(test(&rt(flags, addresses), 43, &header), expected);
    }
    let mut other = header.clone();
    other[2] = 4;
    assert_eq!(test(&rt(0, &[]), 43, &other), Answer::Miss, "another type");
    other[2] = 0;
    other[7] = 1;
    assert_eq!(test(&rt(Rt::RESERVED, &[]), 43, &other), Answer::Miss);
    assert!(is_unknown(&test(&rt(0, &[]), 43, &header[..32]), false));
    assert_eq!(test(&rt(0, &[]), 43, &header[..3]), Answer::Drop);
}

#[test]
fn authentication_headers() {
    let ah = |spi: u32, length: Cond<u32>, reserved: bool| {
        Match::Ah6(Ah6 {
            spi: Cond::new(Span::new(spi, spi), false),
            length,
            reserved,
        })
    };
    let header = [6, 2, 0, 1, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0];
    let any = Cond::new(0, false);
    assert_eq!(test(&ah(7, any, false), 51, &header), Answer::Match);
    assert_eq!(test(&ah(8, any, false), 51, &header), Answer::Miss);
    assert_eq!(test(&ah(7, any, true), 51, &header), Answer::Miss);
    let sixteen = |inverted| ah(7, Cond::new(16, inverted), false);
    assert_eq!(test(&sixteen(false), 51, &header), Answer::Match);
    assert_eq!(test(&sixteen(true), 51, &header), Answer::Miss);
    assert_eq!(test(&ah(7, any, false), 51, &header[..8]), Answer::Drop);
    assert!(is_unknown(
        &test(&ah(7, any, false), 51, &header[..12]),
        false
    ));
}

#[test]
fn which_headers_there_are() {
    let has = |headers: u8, soft: bool, inverted: bool| {
        Match::Ipv6Header(Ipv6Header {
            headers: Cond::new(headers, inverted),
            soft,
        })
    };
    let options = [&PADDED[..], &[0; 20]].concat();
    for (what, expected) in [
        (has(0x81, false, false), Answer::Match),
        (has(0x80, false, false), Answer::Miss),
        (has(0x80, false, true), Answer::Match),
        (has(0x80, true, false), Answer::Match),
        (has(0xc0, true, false), Answer::Miss),
        (has(0x40, true, true), Answer::Match),
        // Turned round, it may have none of them.
        (has(0xc0, true, true), Answer::Miss),
    ] {
        assert_eq!(test(&what, 0, &options), expected, "{what:?}");
    }
    assert_eq!(test(&has(2, false, false), 59, &[]), Answer::Match);
    assert_eq!(test(&has(4, false, false), 50, &[0; 8]), Answer::Match);
    assert_eq!(test(&has(1, false, false), 6, &[]), Answer::Match);
    // A later fragment's payload is taken for headers, too.
    let later = [&[60, 0, 0, 8, 0, 0, 0, 9], &PADDED[..]].concat();
    assert_eq!(test(&has(0x51, false, false), 44, &later), Answer::Match);
    // Kernels differ in what they do with these.
    for rest in [&PADDED[..1], &[6, 1, 1, 4, 0, 0, 0, 0]] {
        assert!(is_unknown(&test(&has(0x81, false, false), 0, rest), false));
    }
    let bytes = packet(0, &options);
    assert!(is_unknown(&cut(&has(1, false, false), &bytes, 41), false));
}

#[test]
fn mobility_and_compression() {
    let mh = |kind: u8| {
        Match::Mh(Mh {
            types: Cond::new(Span::new(kind, kind), false),
        })
    };
    assert_eq!(test(&mh(5), 135, &[59, 0, 5, 0, 0, 0, 0, 0]), Answer::Match);
    assert_eq!(test(&mh(4), 135, &[59, 0, 5, 0, 0, 0, 0, 0]), Answer::Miss);
    assert_eq!(test(&mh(5), 135, &[6, 0, 5, 0, 0, 0, 0, 0]), Answer::Drop);
    assert_eq!(test(&mh(5), 135, &[59, 0, 5, 0]), Answer::Drop);
    let ipcomp = |cpi: u32, inverted: bool| {
        Match::Ipcomp(Spi {
            spi: Cond::new(Span::new(cpi, cpi), inverted),
            reserved: false,
        })
    };
    assert_eq!(test(&ipcomp(5, false), 108, &[6, 0, 0, 5]), Answer::Match);
    assert_eq!(test(&ipcomp(5, true), 108, &[6, 0, 0, 5]), Answer::Miss);
    assert_eq!(test(&ipcomp(5, false), 108, &[6, 0]), Answer::Drop);
}
