//! Sockets that wait for connections, as the descriptors of a process show them.

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
            insi_laddr: [u32; 4],
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
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_state) == socket::TCP_STATE);
    };

    fn socket_record(kind: i32, family: i32, state: i32, port: u16) -> Record {
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
}
