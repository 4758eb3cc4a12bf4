//! The listening TCP sockets of Linux, asked of the kernel by a message (sock_diag(7)).
//!
//! `/proc/net/tcp` tells the same, but whoever reads it has the kernel walk its table of connections to the end, which on a
//! machine with much memory takes milliseconds. Where a message is not answered, in some containers, that file is.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::Socket;

/// The size of a `struct nlmsghdr` (linux/netlink.h).
const HEADER: usize = 16;
/// The size of a `struct inet_diag_msg` (linux/inet_diag.h).
const ANSWER: usize = 72;
/// `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `AF_INET` and `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Asks for every listening TCP socket, with its address.
///
/// # Errors
/// When the kernel, or who filters its calls, does not answer such messages.
pub(super) fn listening() -> io::Result<Vec<(Socket, IpAddr)>> {
    let asked = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    for family in [INET, INET6] {
        send(asked.as_raw_fd(), &request(family), MsgFlags::empty())?;
        receive(&asked, &mut found)?;
    }
    Ok(found)
}

fn receive(from: &OwnedFd, found: &mut Vec<(Socket, IpAddr)>) -> io::Result<()> {
    // What the kernel fills at once (NLMSG_GOODSIZE is at most this).
    let mut buffer = vec![0; 32 * 1024];
    loop {
        // The kernel has answered before `send` returned, or never does.
        let count = recv(from.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        if read(buffer.get(..count).unwrap_or_default(), found)? {
            return Ok(());
        }
    }
}

/// The question for the listening TCP sockets of a family: `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8) -> Vec<u8> {
    /// `NLM_F_REQUEST | NLM_F_DUMP`.
    const FLAGS: u16 = 0x301;
    const TCP: u8 = 6;
    /// `1 << TCP_LISTEN`.
    const LISTEN: u32 = 1 << 10;
    const LENGTH: u32 = 72;
    let mut bytes = LENGTH.to_ne_bytes().to_vec();
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(FLAGS.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, TCP, 0, 0]);
    bytes.extend(LISTEN.to_ne_bytes());
    // Of whatever addresses.
    bytes.resize(72, 0);
    bytes
}

/// Reads what the kernel has sent. Returns whether that was all.
///
/// # Errors
/// When it is an error, or not what was asked for.
fn read(mut bytes: &[u8], found: &mut Vec<(Socket, IpAddr)>) -> io::Result<bool> {
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    while !bytes.is_empty() {
        let length = bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or_else(strange)?;
        let length = usize::try_from(length).ok().filter(|length| *length >= HEADER).ok_or_else(strange)?;
        let message = bytes.get(..length).ok_or_else(strange)?;
        match u16::from_ne_bytes([message[4], message[5]]) {
            DONE => return Ok(true),
            BY_FAMILY => found.push(answer(&message[HEADER..]).ok_or_else(strange)?),
            ERROR => {
                let errno = message.get(HEADER..).and_then(<[u8]>::first_chunk).map(|bytes| i32::from_ne_bytes(*bytes));
                return Err(io::Error::from_raw_os_error(errno.map_or(0, |errno| -errno)));
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads a `struct inet_diag_msg`.
fn answer(bytes: &[u8]) -> Option<(Socket, IpAddr)> {
    let bytes: &[u8; ANSWER] = bytes.first_chunk()?;
    let port = u16::from_be_bytes([bytes[4], bytes[5]]);
    let address: [u8; 16] = *bytes[8..].first_chunk()?;
    let address = match bytes[0] {
        INET => IpAddr::from([address[0], address[1], address[2], address[3]]),
        INET6 => address.into(),
        _ => return None,
    };
    let inode = u32::from_ne_bytes(*bytes[68..].first_chunk()?);
    Some((Socket { port, number: inode.into() }, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).expect("short");
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn shown(family: u8, address: &[u8], port: u16, inode: u32) -> Vec<u8> {
        let mut payload = [0; ANSWER];
        payload[0] = family;
        payload[4..6].copy_from_slice(&port.to_be_bytes());
        payload[8..8 + address.len()].copy_from_slice(address);
        payload[68..].copy_from_slice(&inode.to_ne_bytes());
        message(BY_FAMILY, &payload)
    }

    #[test]
    fn sockets_of_both_families_are_read_until_the_kernel_is_done() {
        let v6 = std::net::Ipv6Addr::LOCALHOST.octets();
        let list = [shown(INET, &[127, 0, 0, 1], 8080, 7), shown(INET6, &v6, 80, 8)].concat();
        let mut found = Vec::new();
        assert!(!read(&list, &mut found).expect("read"));
        let expected = [
            (Socket { port: 8080, number: 7 }, "127.0.0.1".parse().expect("an address")),
            (Socket { port: 80, number: 8 }, "::1".parse().expect("an address")),
        ];
        assert_eq!(found, expected);
        assert!(read(&message(DONE, &[0; 4]), &mut found).expect("read"));
    }

    #[test]
    fn an_error_and_what_is_cut_off_are_no_answer() {
        let refused = read(&message(ERROR, &(-2_i32).to_ne_bytes()), &mut Vec::new()).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(2));
        let whole = shown(INET, &[0; 4], 1, 1);
        for cut in 1..whole.len() {
            assert!(read(&whole[..cut], &mut Vec::new()).is_err(), "cut at {cut}");
        }
        assert!(read(&[0; 16], &mut Vec::new()).is_err(), "a length of nothing");
        assert!(read(&message(BY_FAMILY, &[0; 8]), &mut Vec::new()).is_err(), "half an answer");
    }
}
