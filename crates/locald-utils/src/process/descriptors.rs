//! Descriptors that travel over a Unix socket (SCM_RIGHTS, unix(7)).
//!
//! One `recvmsg` may carry descriptors beside its bytes. Whoever receives says how many it expects; every other one is
//! closed at once, because an open descriptor that nobody knows of is a leak.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::sys;

/// Room for this many descriptors in one message; more are truncated and closed by the kernel.
const MOST: usize = 4;

/// Sends bytes, and a descriptor with the first of them. Returns how many bytes were taken.
///
/// # Errors
/// Those of sendmsg(2); EAGAIN when the socket is non-blocking and full, then nothing was sent.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let fds: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    #[cfg(target_os = "linux")]
    let flags = MsgFlags::MSG_NOSIGNAL;
    // macOS has no such flag; SIGPIPE is ignored in every program of ours.
    #[cfg(not(target_os = "linux"))]
    let flags = MsgFlags::empty();
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Receives bytes and the descriptors that came with them. No bytes mean the end of the stream.
///
/// # Errors
/// Those of recvmsg(2); EAGAIN when the socket is non-blocking and empty.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; MOST]);
    let mut slices = [IoSliceMut::new(buffer)];
    #[cfg(target_os = "linux")]
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            descriptors.extend(sys::received(fds));
        }
    }
    let count = message.bytes;
    #[cfg(not(target_os = "linux"))]
    for descriptor in &descriptors {
        nix::fcntl::fcntl(descriptor, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok((count, descriptors))
}

/// The user at the other end of a connected Unix socket, as the kernel saw it when the connection was made.
///
/// # Errors
/// Those of getsockopt(2), SO_PEERCRED; getpeereid(3) on macOS.
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        Ok(getsockopt(&socket.as_fd(), PeerCredentials)?.uid())
    }
    #[cfg(not(target_os = "linux"))]
    {
        Ok(nix::unistd::getpeereid(socket.as_fd())?.0.as_raw())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_travels_with_its_bytes() {
        let (left, right) = UnixStream::pair().expect("a pair");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        assert_eq!(send(&left, b"take this", Some(writer.as_fd())).expect("sends"), 9);
        drop(writer);
        let mut buffer = [0; 64];
        let (count, mut fds) = receive(&right, &mut buffer).expect("receives");
        assert_eq!((&buffer[..count], fds.len()), (&b"take this"[..], 1));
        std::fs::File::from(fds.remove(0)).write_all(b"through").expect("writes");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "through");
    }
}
