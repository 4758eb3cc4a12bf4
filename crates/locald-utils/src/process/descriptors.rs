//! Descriptors that travel over a Unix socket (SCM_RIGHTS, unix(7)).
//!
//! One `recvmsg` may carry descriptors beside its bytes. Whoever receives says how many it expects; every other one is
//! closed at once, because an open descriptor that nobody knows of is a leak.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::sys;

/// Sends bytes, and descriptors with the first of them. Returns how many bytes were taken.
///
/// # Errors
/// Those of sendmsg(2); EAGAIN when the socket is non-blocking and full, then nothing was sent.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let fds: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
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
/// A process that has as many descriptors as it may have gets the bytes and fewer descriptors than were sent (`MSG_CTRUNC`).
///
/// # Errors
/// Those of recvmsg(2); EAGAIN when the socket is non-blocking and empty.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (count, descriptors) = sys::receive(socket.as_fd(), buffer)?;
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
        assert_eq!(send(&left, b"take this", &[writer.as_fd()]).expect("sends"), 9);
        drop(writer);
        let mut buffer = [0; 64];
        let (count, mut fds) = receive(&right, &mut buffer).expect("receives");
        assert_eq!((&buffer[..count], fds.len()), (&b"take this"[..], 1));
        std::fs::File::from(fds.remove(0)).write_all(b"through").expect("writes");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        assert_eq!(text, "through");
    }

    #[test]
    fn as_many_descriptors_as_a_message_can_have_are_received_and_can_be_closed() {
        let (left, right) = UnixStream::pair().expect("a pair");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let fds = vec![writer.as_raw_fd(); 253];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(left.as_raw_fd(), &[IoSlice::new(b"all")], &rights, MsgFlags::empty(), None).expect("sends");
        let mut buffer = [0; 64];
        let (count, received) = receive(&right, &mut buffer).expect("receives");
        assert_eq!(count, 3);
        drop((writer, received));
        // The pipe ends when no descriptor of its other end is open any more.
        let mut text = String::new();
        assert_eq!(reader.read_to_string(&mut text).expect("reads"), 0);
    }
}
