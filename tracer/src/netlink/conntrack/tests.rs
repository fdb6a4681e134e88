use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .bytes()
        .filter_map(|digit| char::from(digit).to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn udp() -> Tuple {
    Tuple {
        src: [10, 9, 0, 1].into(),
        dst: [10, 9, 0, 2].into(),
        proto: 17,
        from: 4000,
        to: 69,
    }
}

/// From 6.18.44: two datagrams to a port with a TFTP helper, mark 0x77, labels 5 and 77; with accounting.
/// `conntrack -L -o id,extended` said: udp 17 29 src=10.9.0.1 dst=10.9.0.2 sport=4000 dport=69 packets=2 bytes=58 [UNREPLIED]
/// src=10.9.0.2 dst=10.9.0.1 sport=69 dport=4000 packets=0 bytes=0 mark=119 helper=tftp use=1 id=1569564732
const CONNECTION: &str = "02000000
    34000180 14000180 08000100 0a090001 08000200 0a090002
    1c000280 05000100 11000000 06000200 0fa00000 06000300 00450000
    34000280 14000180 08000100 0a090002 08000200 0a090001
    1c000280 05000100 11000000 06000200 00450000 06000300 0fa00000
    08000300 00002008 08000800 00000077 08000c00 5d8da83c 08000b00 00000002 08000700 0000001d
    1c000980 0c000100 00000000 00000002 0c000200 00000000 0000003a
    1c000a80 0c000100 00000000 00000000 0c000200 00000000 00000000
    10000580 09000100 74667470 00000000
    14001600 20000000 00000000 00200000 00000000";

#[test]
fn a_connection_of_the_kernel() {
    let connection = decode(&bytes(CONNECTION)).unwrap();
    let reply = Tuple {
        src: udp().dst,
        dst: udp().src,
        from: 69,
        to: 4000,
        ..udp()
    };
    let sent = Counted {
        packets: 2,
        bytes: 58,
    };
    assert_eq!(
        connection,
        Connection {
            orig: udp(),
            reply,
            status: 0x2008,
            timeout: Some(29),
            mark: 119,
            zone: 0,
            tcp_state: None,
            helper: Some("tftp".to_owned()),
            counted: Some((sent, Counted::default())),
            labels: vec![5, 77],
            id: Some(1_569_564_732),
        }
    );
}

#[test]
fn the_table_and_the_counters_of_the_kernel() {
    let stats = bytes("00000000 08000100 00000001 08000200 00040000");
    let usage = Usage {
        entries: 1,
        max: Some(262_144),
    };
    assert_eq!(decode_stats(&stats).unwrap(), usage);
    // Of processor 1.
    let cpu = bytes(
        "00000001 08000200 00000000 08000400 0000000c 08000800 00000000 08000900 00000001 08000a00 00000003
         08000b00 00000002 08000c00 00000000 08000d00 00000000 08000e00 00000004 08000f00 00000005",
    );
    let counters = Counters {
        invalid: 12,
        insert_failed: 1,
        drop: 3,
        early_drop: 2,
        clash_resolve: 4,
        chain_too_long: 5,
        ..Counters::default()
    };
    assert_eq!(decode_stats_cpu(&cpu).unwrap(), (1, counters));
    assert_eq!(counters.named()[4], ("drop", 3));
}

#[test]
fn what_is_missing_or_too_short_is_told() {
    assert!(decode_stats(&[0; 4]).is_err());
    assert!(decode_stats_cpu(&[0; 3]).is_err());
    assert!(decode(&bytes("02000000")).is_err());
    assert!(decode_stats(&bytes("00000000 06000100 00010000")).is_err());
    // A reply tuple only.
    let whole = bytes(CONNECTION);
    let reply = [&whole[..4], &whole[4 + 0x34..4 + 2 * 0x34]].concat();
    assert_eq!(decode(&reply), Err(AttrError::Missing { kind: 1 }));
}

#[test]
fn requests_are_what_the_kernel_takes() {
    let asked = get(&udp(), 0, 1).unwrap();
    assert_eq!(
        asked,
        bytes(
            "48000000 01010500 01000000 00000000 02000000 34000180 14000180 08000100 0a090001 08000200 0a090002
             1c000280 05000100 11000000 06000200 0fa00000 06000300 00450000"
        )
    );
    let zoned = get(&udp(), 7, 1).unwrap();
    assert!(zoned.ends_with(&bytes("06001200 00070000")), "{zoned:x?}");
    assert_eq!(
        stats(1).unwrap(),
        bytes("14000000 05010500 01000000 00000000 00000000")
    );
    assert_eq!(
        stats_cpu(1).unwrap(),
        bytes("14000000 04010103 01000000 00000000 00000000")
    );
}

#[test]
fn what_would_load_a_module_is_not_asked() {
    let loaded = "nf_conntrack_netlink 57344 0 - Live 0x0\nnf_conntrack 176128 1 - Live 0x0\n";
    let without = "nf_conntrack 176128 1 - Live 0x0\n";
    let builtin = "kernel/net/netfilter/nf_conntrack_netlink.ko\n";
    assert!(is_loaded(loaded, "", true));
    assert!(!is_loaded(without, "kernel/fs/ext4/ext4.ko\n", true));
    assert!(!is_loaded(without, "", true));
    assert!(is_loaded("", builtin, true));
    assert!(is_loaded("", "", true));
    assert!(!is_loaded("", builtin, false));
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let numbers = (any::<u8>(), any::<u16>(), any::<u16>(), any::<[u8; 32]>());
    (numbers, any::<bool>()).prop_map(|((proto, from, to, octets), v6)| {
        let (src, dst) = octets.split_at(16);
        let (src, dst): ([u8; 16], [u8; 16]) = (src.try_into().unwrap(), dst.try_into().unwrap());
        let address = |octets: [u8; 16]| match v6 {
            true => IpAddr::from(octets),
            false => IpAddr::from(*octets.first_chunk::<4>().unwrap()),
        };
        Tuple {
            src: address(src),
            dst: address(dst),
            proto,
            from,
            to,
        }
    })
}

proptest! {
    #[test]
    fn tuples_survive(wanted in tuples()) {
        let mut writer = Writer::new();
        writer.nest(1, |w| write_tuple(w, &wanted));
        let bytes = writer.finish().unwrap();
        let attr = Attrs::new(&bytes).next().unwrap().unwrap();
        prop_assert_eq!(tuple(&attr).unwrap(), wanted);
    }

    #[test]
    fn never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&payload);
        let _ = decode_stats(&payload);
        let _ = decode_stats_cpu(&payload);
    }

    #[test]
    fn never_panics_on_damaged_connections(at in 0_usize..256, byte in any::<u8>(), cut in 0_usize..260) {
        let mut payload = bytes(CONNECTION);
        if let Some(place) = payload.get_mut(at) {
            *place = byte;
        }
        payload.truncate(cut);
        let _ = decode(&payload);
    }
}
