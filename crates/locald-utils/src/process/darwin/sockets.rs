//! Sockets that wait for connections, as the descriptors of a process show them, and as the network shows everybody's.

use std::net::IpAddr;

use super::{bytes_at, i32_at};

/// The size of a `struct proc_fdinfo` (sys/proc_info.h).
pub const FD_INFO_SIZE: usize = 8;
/// The size of a `struct socket_fdinfo` (sys/proc_info.h).
pub const SOCKET_FD_INFO_SIZE: usize = 792;

/// Where the fields of a `struct socket_fdinfo` lie (sys/proc_info.h).
mod socket {
    pub(super) const HANDLE: usize = 160;
    pub(super) const FAMILY: usize = 184;
    pub(super) const KIND: usize = 256;
    pub(super) const LOCAL_PORT: usize = 268;
    pub(super) const LOCAL_ADDRESS: usize = 312;
    pub(super) const TCP_STATE: usize = 344;
    /// `AF_INET` (sys/socket.h).
    pub(super) const INET: i32 = 2;
    /// `AF_INET6` (sys/socket.h); 10 on Linux.
    pub(super) const INET6: i32 = 30;
    /// `SOCKINFO_TCP`.
    pub(super) const TCP: i32 = 2;
    /// `TSI_S_LISTEN`.
    pub(super) const LISTEN: i32 = 1;
}

/// `PROX_FDTYPE_SOCKET` (sys/proc_info.h).
const SOCKET_DESCRIPTOR: i32 = 2;

/// Reads which descriptors are sockets out of a list of `struct proc_fdinfo`.
pub fn socket_descriptors(bytes: &[u8]) -> impl Iterator<Item = i32> {
    bytes
        .chunks_exact(FD_INFO_SIZE)
        .filter_map(|record| if i32_at(record, 4)? == SOCKET_DESCRIPTOR { i32_at(record, 0) } else { None })
}

/// A TCP socket that waits for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Tells one socket from another, whoever holds it.
    pub handle: u64,
    /// Its port.
    pub port: u16,
    /// Whether it is an IPv6 socket, which may take IPv4 connections too.
    pub v6: bool,
}

impl ListeningSocket {
    /// Reads a `struct socket_fdinfo`. `None` for any socket but a listening one of TCP.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if i32_at(bytes, socket::KIND)? != socket::TCP || i32_at(bytes, socket::TCP_STATE)? != socket::LISTEN {
            return None;
        }
        let v6 = match i32_at(bytes, socket::FAMILY)? {
            socket::INET => false,
            socket::INET6 => true,
            _ => return None,
        };
        // The field is an `int`, but its first two bytes are the port in network order.
        let port = u16::from_be_bytes(bytes_at(bytes, socket::LOCAL_PORT)?);
        Some(Self { handle: u64::from_le_bytes(bytes_at(bytes, socket::HANDLE)?), port, v6 })
    }
}

/// The address that a socket has here, out of a `struct socket_fdinfo`. `None` for any family but the two of the internet.
#[must_use]
pub fn local_address(bytes: &[u8]) -> Option<IpAddr> {
    let address: [u8; 16] = bytes_at(bytes, socket::LOCAL_ADDRESS)?;
    match i32_at(bytes, socket::FAMILY)? {
        // Four bytes at the end of the sixteen (`struct in4in6_addr`).
        socket::INET => Some(IpAddr::from(bytes_at::<4>(&address, 12)?)),
        socket::INET6 => Some(address.into()),
        _ => None,
    }
}

/// Where the fields of the records of `net.inet.tcp.pcblist_n` lie, which XNU declares for itself alone, packed to four
/// bytes: `struct xinpcb_n` (netinet/in_pcb.h), `xsocket_n` (sys/socketvar.h) and `xtcpcb_n` (netinet/tcp_var.h).
mod pcb {
    pub(super) const LENGTH: usize = 0;
    pub(super) const KIND: usize = 4;
    /// `XSO_SOCKET` (sys/socketvar.h).
    pub(super) const SOCKET: i32 = 0x01;
    /// `XSO_INPCB`.
    pub(super) const INTERNET: i32 = 0x10;
    /// `XSO_TCPCB`.
    pub(super) const TCP: i32 = 0x20;
    /// `xso_so`, the same number as `soi_so` of a descriptor.
    pub(super) const HANDLE: usize = 8;
    /// `xso_family`.
    pub(super) const FAMILY: usize = 40;
    /// `inp_lport`, in network order.
    pub(super) const LOCAL_PORT: usize = 18;
    /// `t_state`.
    pub(super) const STATE: usize = 36;
    /// `TCPS_LISTEN` (netinet/tcp_fsm.h).
    pub(super) const LISTEN: i32 = 1;
    /// The size of a `struct xinpgen` (netinet/in_pcb.h), the first and the last record. All others are larger.
    pub(super) const GENERATION_SIZE: usize = 24;
}

/// Reads everybody's listening TCP sockets out of an answer of `net.inet.tcp.pcblist_n`.
///
/// The layout (XNU `get_pcblist_n`, bsd/netinet/in_pcblist.c): a generation record; for each connection a record of
/// every kind, that of the internet first and that of TCP last; another generation record. Each begins with its length
/// and, but for the generation, its kind, and is filled up to a multiple of eight bytes. Kinds that we do not know are
/// passed over; of a list that is cut off or not laid out so, what was complete counts.
#[must_use]
pub fn listening_sockets(bytes: &[u8]) -> Vec<ListeningSocket> {
    let mut found = Vec::new();
    let (mut port, mut identity) = (None, None);
    for record in pcb_records(bytes) {
        match i32_at(record, pcb::KIND) {
            Some(pcb::INTERNET) => {
                // The records before belong to another connection.
                identity = None;
                port = bytes_at(record, pcb::LOCAL_PORT).map(u16::from_be_bytes);
            }
            Some(pcb::SOCKET) => {
                identity = bytes_at(record, pcb::HANDLE).map(u64::from_le_bytes).zip(i32_at(record, pcb::FAMILY));
            }
            Some(pcb::TCP) => {
                let is_listening = i32_at(record, pcb::STATE) == Some(pcb::LISTEN);
                let (port, identity) = (port.take(), identity.take());
                if let (true, Some(port), Some((handle, family @ (socket::INET | socket::INET6)))) =
                    (is_listening, port, identity)
                {
                    found.push(ListeningSocket { handle, port, v6: family == socket::INET6 });
                }
            }
            Some(_) | None => {}
        }
    }
    found
}

/// The records between the two generation records, each without its padding.
fn pcb_records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = pcb_record(bytes).map(|(_, rest)| rest).unwrap_or_default();
    std::iter::successors(pcb_record(first), |(_, rest)| pcb_record(rest))
        .map(|(record, _)| record)
        .take_while(|record| record.len() > pcb::GENERATION_SIZE)
}

/// The first record, and what follows it. `None` when it is shorter than any is or longer than what there is.
fn pcb_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_le_bytes(bytes_at(bytes, pcb::LENGTH)?)).ok()?;
    let record = bytes.get(..length).filter(|record| record.len() >= pcb::GENERATION_SIZE)?;
    Some((record, bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default()))
}

/// What the records of a list are filled up to.
const ALIGNMENT: usize = 8;

/// Adds to what descriptors showed, by handle, the sockets of `port` that nobody's descriptors showed: `None` for the holder.
#[must_use]
pub fn with_hidden<H>(
    shown: Vec<(ListeningSocket, Option<H>)>,
    everybodys: &[ListeningSocket],
    port: u16,
) -> Vec<(ListeningSocket, Option<H>)> {
    let mut all = shown;
    for socket in everybodys.iter().filter(|socket| socket.port == port) {
        if !all.iter().any(|(known, _)| known.handle == socket.handle) {
            all.push((*socket, None));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::super::record::{Record, VinfoStat};
    use super::*;

    /// The declarations of XNU's headers, said again for their layout. A pointer is a `u64`, `char` a `u8`; of a union
    /// the member that is read.
    mod layout {
        use super::VinfoStat;

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct InSockinfo {
            insi_fport: i32,
            pub(super) insi_lport: i32,
            insi_gencnt: u64,
            insi_flags: u32,
            insi_flow: u32,
            insi_vflag: u8,
            insi_ip_ttl: u8,
            rfu_1: u32,
            insi_faddr: [u32; 4],
            pub(super) insi_laddr: [u32; 4],
            in4_tos: u8,
            insi_v6: In6Sockinfo,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct In6Sockinfo {
            in6_hlim: u8,
            in6_cksum: i32,
            in6_ifindex: u16,
            in6_hops: i16,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct TcpSockinfo {
            pub(super) tcpsi_ini: InSockinfo,
            pub(super) tcpsi_state: i32,
            tcpsi_timer: [i32; 4],
            tcpsi_mss: i32,
            tcpsi_flags: u32,
            rfu_1: u32,
            tcpsi_tp: u64,
        }

        /// sys/proc_info.h; two addresses of `SOCK_MAXADDRLEN` bytes make it the largest of its union.
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(super) struct UnSockinfo {
            unsi_conn_so: u64,
            unsi_conn_pcb: u64,
            unsi_addr: [u8; 255],
            unsi_caddr: [u8; 255],
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) union SoiProto {
            pub(super) pri_tcp: std::mem::ManuallyDrop<TcpSockinfo>,
            pri_un: UnSockinfo,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct SocketFdinfo {
            fi_openflags: u32,
            fi_status: u32,
            fi_offset: i64,
            fi_type: i32,
            fi_guardflags: u32,
            soi_stat: VinfoStat,
            pub(super) soi_so: u64,
            soi_pcb: u64,
            soi_type: i32,
            soi_protocol: i32,
            pub(super) soi_family: i32,
            soi_shorts: [i16; 7],
            soi_error: u16,
            soi_oobmark: u32,
            soi_rcv: SockbufInfo,
            soi_snd: SockbufInfo,
            pub(super) soi_kind: i32,
            rfu_1: u32,
            pub(super) soi_proto: SoiProto,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct SockbufInfo {
            sbi_counts: [u32; 5],
            sbi_flags: i16,
            sbi_timeo: i16,
        }
    }
    use layout::*;

    const PROTO: usize = offset_of!(SocketFdinfo, soi_proto);
    const _: () = {
        assert!(size_of::<SocketFdinfo>() == SOCKET_FD_INFO_SIZE);
        assert!(offset_of!(SocketFdinfo, soi_so) == socket::HANDLE);
        assert!(offset_of!(SocketFdinfo, soi_family) == socket::FAMILY);
        assert!(offset_of!(SocketFdinfo, soi_kind) == socket::KIND);
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_ini.insi_lport) == socket::LOCAL_PORT);
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_ini.insi_laddr) == socket::LOCAL_ADDRESS);
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_state) == socket::TCP_STATE);
    };

    pub(super) fn socket_record(kind: i32, family: i32, state: i32, port: u16) -> Record {
        let [high, low] = port.to_be_bytes();
        Record::new(SOCKET_FD_INFO_SIZE)
            .with(offset_of!(SocketFdinfo, soi_so), 0xfeed_u64.to_le_bytes())
            .with(offset_of!(SocketFdinfo, soi_family), family.to_le_bytes())
            .with(offset_of!(SocketFdinfo, soi_kind), kind.to_le_bytes())
            .with(PROTO + offset_of!(TcpSockinfo, tcpsi_ini.insi_lport), [high, low, 0, 0])
            .with(PROTO + offset_of!(TcpSockinfo, tcpsi_state), state.to_le_bytes())
    }

    #[test]
    fn listening_sockets_of_both_families_tell_their_port() {
        let expected = ListeningSocket { handle: 0xfeed, port: 8080, v6: false };
        assert_eq!(ListeningSocket::parse(&socket_record(2, 2, 1, 8080).0), Some(expected));
        let v6 = ListeningSocket { v6: true, ..expected };
        assert_eq!(ListeningSocket::parse(&socket_record(2, 30, 1, 8080).0), Some(v6));
    }

    #[test]
    fn the_address_of_a_socket_is_read_in_both_families() {
        let localhost = |family| {
            let record = socket_record(2, family, 1, 8080);
            local_address(&record.with(socket::LOCAL_ADDRESS + 12, [127, 0, 0, 1]).0)
        };
        assert_eq!(localhost(socket::INET), Some("127.0.0.1".parse().expect("an address")));
        assert_eq!(localhost(socket::INET6), Some("::7f00:1".parse().expect("an address")));
        assert_eq!(localhost(10), None);
    }

    #[test]
    fn other_sockets_do_not_listen() {
        // Connected, closed, UDP, a Unix socket, a family that TCP does not have.
        for (kind, family, state) in [(2, 2, 4), (2, 2, 0), (1, 2, 1), (3, 1, 1), (2, 10, 1)] {
            assert_eq!(ListeningSocket::parse(&socket_record(kind, family, state, 8080).0), None);
        }
        assert_eq!(ListeningSocket::parse(&socket_record(2, 2, 1, 8080).0[..socket::TCP_STATE + 3]), None);
    }

    #[test]
    fn only_sockets_are_taken_from_a_list_of_descriptors() {
        let entries = [(0, 1), (3, 2), (4, 5), (5, 2), (6, 6)];
        let mut bytes: Vec<u8> = entries
            .iter()
            .flat_map(|&(fd, kind): &(i32, i32)| [fd.to_le_bytes(), kind.to_le_bytes()].concat())
            .collect();
        bytes.extend([7, 0, 0, 0, 2]);
        assert_eq!(socket_descriptors(&bytes).collect::<Vec<_>>(), [3, 5]);
    }

    /// XNU's declarations of the records, packed as there.
    mod pcb_layout {
        /// netinet/in_pcb.h; what follows is not read.
        #[repr(C, packed(4))]
        pub(super) struct XinpcbN {
            xi_len: u32,
            xi_kind: u32,
            xi_inpp: u64,
            inp_fport: u16,
            pub(super) inp_lport: u16,
            inp_ppcb: u64,
            inp_gencnt: u64,
            inp_flags: i32,
            inp_flow: u32,
            inp_vflag: u8,
            inp_ip_ttl: u8,
            inp_ip_p: u8,
            inp_dependaddrs: [[u32; 4]; 2],
            inp4_ip_tos: u8,
            inp_depend6: (u8, i32, u16, i16),
            inp_flowhash: u32,
            inp_flags2: u32,
        }

        /// sys/socketvar.h; what follows is not read.
        #[repr(C, packed(4))]
        pub(super) struct XsocketN {
            xso_len: u32,
            xso_kind: u32,
            pub(super) xso_so: u64,
            so_type: i16,
            so_options: u32,
            so_linger: i16,
            so_state: i16,
            so_pcb: u64,
            xso_protocol: i32,
            pub(super) xso_family: i32,
        }

        /// netinet/tcp_var.h; what follows is not read.
        #[repr(C, packed(4))]
        pub(super) struct XtcpcbN {
            xt_len: u32,
            xt_kind: u32,
            t_segq: u64,
            t_dupacks: i32,
            t_timer: [i32; 4],
            pub(super) t_state: i32,
        }
    }
    use pcb_layout::*;

    const _: () = {
        assert!(size_of::<XinpcbN>() == 104);
        assert!(offset_of!(XinpcbN, inp_lport) == pcb::LOCAL_PORT);
        assert!(offset_of!(XsocketN, xso_so) == pcb::HANDLE);
        assert!(offset_of!(XsocketN, xso_family) == pcb::FAMILY);
        assert!(offset_of!(XtcpcbN, t_state) == pcb::STATE);
    };

    /// A record of a kind, filled up to eight bytes as the kernel does.
    fn pcb_record(kind: i32, length: usize) -> Record {
        Record::new(length.next_multiple_of(8))
            .with(pcb::LENGTH, u32::try_from(length).expect("short").to_le_bytes())
            .with(pcb::KIND, kind.to_le_bytes())
    }

    /// All records of one connection, in the kernel's order and of its sizes on macOS 15.
    pub(super) fn connection(handle: u64, family: i32, state: i32, port: u16) -> Vec<u8> {
        [
            pcb_record(pcb::INTERNET, 104).with(pcb::LOCAL_PORT, port.to_be_bytes()),
            pcb_record(pcb::SOCKET, 108)
                .with(pcb::HANDLE, handle.to_le_bytes())
                .with(pcb::FAMILY, family.to_le_bytes()),
            pcb_record(0x02, 32),
            // A send buffer without a socket has no kind.
            pcb_record(0, 32),
            pcb_record(0x08, 136),
            pcb_record(pcb::TCP, 204).with(pcb::STATE, state.to_le_bytes()),
        ]
        .map(|record| record.0)
        .concat()
    }

    pub(super) fn pcb_list(connections: &[Vec<u8>]) -> Vec<u8> {
        let generation = pcb_record(i32::try_from(connections.len()).expect("few"), 24).0;
        [&generation[..], &connections.concat(), &generation].concat()
    }

    #[test]
    fn everybodys_listening_sockets_are_read() {
        let list = pcb_list(&[
            connection(0xa, socket::INET, 1, 8080),
            connection(0xb, socket::INET, 4, 8080),
            connection(0xc, socket::INET6, 1, 5432),
            connection(0xd, 10, 1, 8080),
        ]);
        let expected = [
            ListeningSocket { handle: 0xa, port: 8080, v6: false },
            ListeningSocket { handle: 0xc, port: 5432, v6: true },
        ];
        assert_eq!(listening_sockets(&list), expected);
        assert_eq!(listening_sockets(&pcb_list(&[])), []);
    }

    #[test]
    fn a_list_that_is_cut_off_anywhere_tells_what_was_complete() {
        let connections = [connection(0xa, socket::INET, 1, 8080), connection(0xc, socket::INET6, 1, 5432)];
        let (list, one) = (pcb_list(&connections), 24 + connections[0].len());
        for cut in 0..list.len() {
            let known = listening_sockets(&list[..cut]).len();
            // The last record of a connection is filled up by four bytes, which nobody misses.
            let complete = usize::from(cut >= one - 4) + usize::from(cut >= list.len() - 24 - 4);
            assert_eq!(known, complete, "cut at {cut}");
        }
    }

    #[test]
    fn lengths_and_kinds_that_the_kernel_never_gives_are_no_trap() {
        let good = connection(0xa, socket::INET, 1, 8080);
        for length in [0, 1, 7, 23, 24, 0x7fff_ffff, u32::MAX, u32::MAX - 7] {
            let mut list = pcb_list(&[good.clone(), good.clone(), good.clone()]);
            let at = 24 + good.len();
            list[at..at + 4].copy_from_slice(&length.to_le_bytes());
            assert_eq!(listening_sockets(&list).len(), 1, "the one before a length of {length}");
            list[..4].copy_from_slice(&length.to_le_bytes());
            let none_or_one = listening_sockets(&list).len();
            assert_eq!(none_or_one, usize::from(length == 24), "behind a head of {length}");
        }
        // A kind of tomorrow, in between.
        let unknown = pcb_record(0x40, 40).0;
        assert_eq!(listening_sockets(&pcb_list(&[unknown, good.clone()])).len(), 1);
        // A connection without its socket does not borrow that of the one before, which lacks its last record.
        let mut halves = connection(0xb, socket::INET, 4, 80);
        halves.truncate(halves.len() - 208);
        halves.extend(pcb_record(pcb::INTERNET, 104).0);
        halves.extend(pcb_record(pcb::TCP, 204).with(pcb::STATE, 1_i32.to_le_bytes()).0);
        assert_eq!(listening_sockets(&pcb_list(&[halves])), []);
    }

    #[test]
    fn a_socket_whose_holder_is_hidden_still_counts_and_none_counts_twice() {
        let socket = |handle, port| ListeningSocket { handle, port, v6: false };
        let everybodys = [socket(1, 80), socket(2, 80), socket(3, 81)];
        let all = with_hidden(vec![(socket(1, 80), Some("ours"))], &everybodys, 80);
        assert_eq!(all, [(socket(1, 80), Some("ours")), (socket(2, 80), None)]);
    }
}

/// Valid answers, for tests that spoil them.
#[cfg(test)]
pub(super) mod fixtures {
    use super::*;

    pub(in super::super) fn descriptors() -> Vec<u8> {
        [3, SOCKET_DESCRIPTOR, 4, 1, 5, SOCKET_DESCRIPTOR].map(i32::to_le_bytes).concat()
    }

    pub(in super::super) fn descriptor() -> Vec<u8> {
        tests::socket_record(socket::TCP, socket::INET, socket::LISTEN, 8080).0
    }

    pub(in super::super) fn connections() -> Vec<u8> {
        tests::pcb_list(&[tests::connection(1, socket::INET, 1, 8080), tests::connection(2, socket::INET6, 1, 80)])
    }
}
