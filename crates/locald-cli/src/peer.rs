//! Who is at the other end of a socket. The only file of this crate that differs between systems.

use std::os::fd::AsFd;

/// The process at the other end, as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its user.
    pub(crate) uid: u32,
    /// Its number, where the system tells.
    pub(crate) pid: Option<i32>,
}

/// Asks the kernel who listens (SO_PEERCRED, unix(7)).
#[cfg(target_os = "linux")]
pub(crate) fn of(socket: &impl AsFd) -> nix::Result<Peer> {
    let credentials = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: Some(credentials.pid()).filter(|pid| *pid > 0) })
}

/// Asks the kernel who listens (getpeereid(3), LOCAL_PEERPID in sys/un.h).
#[cfg(target_os = "macos")]
pub(crate) fn of(socket: &impl AsFd) -> nix::Result<Peer> {
    let (uid, _) = nix::unistd::getpeereid(socket)?;
    let pid = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::LocalPeerPid).ok();
    Ok(Peer { uid: uid.as_raw(), pid: pid.filter(|pid| *pid > 0) })
}
