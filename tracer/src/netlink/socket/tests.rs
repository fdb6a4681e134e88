use super::*;
use crate::netlink::attr::Writer;
use proptest::prelude::*;

const RTM_GETLINK: u16 = 18;
const RTM_NEWLINK: u16 = 16;

fn links(socket: &mut Socket) -> Result<Vec<Msg>, SocketError> {
    let seq = socket.next_seq();
    let request = message(RTM_GETLINK, flags::REQUEST | flags::DUMP, seq, &[0; 16]);
    socket.dump(&request)
}

#[test]
fn dumps_the_links_of_this_namespace() {
    let mut socket = Socket::open(Protocol::Route, &[]).unwrap();
    socket.set_receive_buffer(1 << 16).unwrap();
    for _ in 0..2 {
        let messages = links(&mut socket).unwrap();
        assert!(!messages.is_empty());
        assert!(messages.iter().all(|message| message.kind == RTM_NEWLINK));
        // IFLA_IFNAME is attribute 3, after struct ifinfomsg of 16 bytes.
        assert!(messages.iter().any(|message| {
            let name = Attrs::after(&message.payload, 16).find(3).unwrap().unwrap();
            name.str() == Ok("lo")
        }));
    }
    assert!(socket.recv().unwrap().is_none());
}

#[test]
fn a_refused_request_tells_the_error() {
    let mut socket = Socket::open(Protocol::Route, &[]).unwrap();
    let seq = socket.next_seq();
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
    let request = message(RTM_GETLINK, flags::REQUEST | flags::ACK, seq, &body);
    let error = socket.dump(&request).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
    let error = socket.request_ack(&request).unwrap_err();
    assert!(matches!(error, SocketError::Kernel { seq: refused, .. } if refused == seq));
}

#[test]
fn reads_the_extended_acknowledgement() {
    let request = message(0xa07, flags::REQUEST, 7, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for capped in [true, false] {
        let mut payload = (-libc::ENOENT).to_ne_bytes().to_vec();
        payload.extend_from_slice(if capped { &request[..HEADER] } else { &request });
        let attributes = Writer::new()
            .str(NLMSGERR_ATTR_MSG, "no")
            .u32(NLMSGERR_ATTR_OFFS, 20)
            .finish();
        payload.extend_from_slice(&attributes.unwrap());
        let flags = flags::ACK_TLVS | if capped { flags::CAPPED } else { 0 };
        let bytes = message(NLMSG_ERROR, flags, 7, &payload);
        let message = Messages::new(&bytes).next().unwrap().unwrap();
        let error = acknowledgement(&message).unwrap_err();
        assert_eq!(
            error.to_string(),
            "netlink: No such file or directory (os error 2) (no) at byte 20 of the request"
        );
    }
}

#[test]
fn splits_a_datagram() {
    let mut bytes = message(1, 2, 3, b"abc");
    bytes.extend(message(4, 5, 6, b""));
    let read: Vec<Message<'_>> = Messages::new(&bytes).map(Result::unwrap).collect();
    assert_eq!(
        read[0],
        Message {
            kind: 1,
            flags: 2,
            seq: 3,
            port: 0,
            payload: b"abc"
        }
    );
    assert_eq!((read.len(), read[1].kind, read[1].seq), (2, 4, 6));
    bytes[0] = 200;
    assert!(matches!(
        Messages::new(&bytes).next(),
        Some(Err(SocketError::Framing {
            offset: 0,
            length: 200,
            left: 36
        }))
    ));
}

proptest! {
    #[test]
    fn any_datagram_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        for message in Messages::new(&bytes).flatten() {
            let _ = acknowledgement(&message);
            let _ = end_of_answer(&message);
        }
    }
}
