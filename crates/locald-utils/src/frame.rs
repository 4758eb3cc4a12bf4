//! Frames: how messages are cut out of a byte stream.
//!
//! ```text
//! length: u32, big endian, counts what follows | kind: u8 | payload
//! ```
//! Kind 0 is control, a JSON message; kind 1 is raw bytes. A [`Decoder`] is fed whatever a socket gives and returns
//! whole frames; it does no input or output itself, so both the blocking and the async side use the same one.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest payload that either side accepts: 8 MiB, several times the specs of a thousand services.
pub const MAX_PAYLOAD: usize = 8 << 20;

const HEADER: usize = 5;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A JSON message.
    Control,
    /// Bytes of a stream.
    Raw,
}

/// One whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Says why a byte stream is not a sequence of frames. Nothing can be read from the stream after it.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is over the limit; nothing was allocated for it.
    #[error("a frame of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
    /// The length leaves no room for the kind.
    #[error("a frame without a kind")]
    Empty,
    /// The kind is none of ours.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The stream ended inside a frame.
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    /// A raw frame came where only messages are expected.
    #[error("raw bytes where a message was expected")]
    NotControl,
    /// The payload is not the message that was expected.
    #[error("not a message of this protocol: {0}")]
    Message(#[from] serde_json::Error),
}

/// Makes the bytes of one control frame.
///
/// # Errors
/// When `message` cannot be JSON, or is larger than [`MAX_PAYLOAD`].
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, message)?;
    let payload = bytes.len() - HEADER;
    if payload > MAX_PAYLOAD {
        return Err(FrameError::TooLong(payload));
    }
    let length = u32::try_from(payload + 1).map_err(|_| FrameError::TooLong(payload))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Reads a control frame's message.
///
/// # Errors
/// When the frame is raw, or its payload is not a `T`.
pub fn decode<T: DeserializeOwned>(frame: &Frame) -> Result<T, FrameError> {
    match frame.kind {
        FrameKind::Control => Ok(serde_json::from_slice(&frame.payload)?),
        FrameKind::Raw => Err(FrameError::NotControl),
    }
}

/// Cuts frames out of the bytes it is given.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// How far `bytes` has been returned as frames.
    taken: usize,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next whole frame, `None` until there is one.
    ///
    /// # Errors
    /// When what came is no frame; the stream is of no use after that. A length over the limit is refused before its
    /// payload is waited for.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some(header) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*header) as usize;
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length - 1 > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length - 1));
        }
        let Some(&kind) = rest.get(4) else { return Ok(None) };
        let kind = match kind {
            0 => FrameKind::Control,
            1 => FrameKind::Raw,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let Some(payload) = rest.get(HEADER..4 + length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.taken += 4 + length;
        if self.taken == self.bytes.len() {
            // The usual case: every byte is used. Gives the memory of a large frame back.
            self.bytes = Vec::new();
            self.taken = 0;
        }
        Ok(Some(Frame { kind, payload }))
    }

    /// How many bytes have come that are no whole frame yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// How many bytes the next frame needs at least to be whole, or to say how long it is.
    fn missing(&self) -> usize {
        let rest = &self.bytes[self.taken..];
        let whole = rest.first_chunk().map_or(4, |length| 4 + u32::from_be_bytes(*length) as usize);
        whole.saturating_sub(rest.len()).max(1)
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when part of a frame has come.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.taken == self.bytes.len() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

/// Reads the next message from a blocking stream, and nothing of what follows it. `None` at its end.
///
/// # Errors
/// When the stream fails, ends inside a frame, or holds something else than a `T`.
pub fn read_message<T: DeserializeOwned>(
    stream: &mut impl std::io::Read,
    decoder: &mut Decoder,
) -> std::io::Result<Option<T>> {
    let invalid = |error: FrameError| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    loop {
        if let Some(frame) = decoder.next_frame().map_err(invalid)? {
            return decode(&frame).map(Some).map_err(invalid);
        }
        let mut buffer = [0; 4096];
        let wanted = decoder.missing().min(buffer.len());
        match stream.read(&mut buffer[..wanted]) {
            Ok(0) => return decoder.finish().map(|()| None).map_err(invalid),
            Ok(count) => decoder.push(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes one message to a blocking stream.
///
/// # Errors
/// When the message is too large or the stream fails.
pub fn write_message<T: Serialize + ?Sized>(stream: &mut impl std::io::Write, message: &T) -> std::io::Result<()> {
    let bytes = encode(message).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_way_of_cutting_the_stream(
            messages in proptest::collection::vec(".{0,40}", 0..12),
            cuts in proptest::collection::vec(1usize..24, 0..64),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| encode(message).expect("encodes")).collect();
            let mut decoder = Decoder::default();
            let mut received: Vec<String> = Vec::new();
            let mut rest = stream.as_slice();
            let mut cuts = cuts.into_iter();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap_or(usize::MAX).min(rest.len()));
                decoder.push(now);
                rest = later;
                while let Some(frame) = decoder.next_frame().expect("valid") {
                    received.push(decode(&frame).expect("a string"));
                }
            }
            prop_assert_eq!(received, messages);
            prop_assert!(decoder.finish().is_ok());
        }

        #[test]
        fn a_message_is_read_without_a_byte_of_the_next_one(
            messages in proptest::collection::vec(proptest::string::string_regex(".{0,9000}").expect("a pattern"), 1..6),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|message| encode(message).expect("encodes")).collect();
            let mut stream = bytes.as_slice();
            for message in messages {
                let read: Option<String> = read_message(&mut stream, &mut Decoder::default()).expect("a message");
                prop_assert_eq!(read, Some(message));
            }
            prop_assert!(read_message::<String>(&mut stream, &mut Decoder::default()).expect("the end").is_none());
        }

        #[test]
        fn garbage_never_panics_and_never_grows(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.payload.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_payload_comes() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn an_end_inside_a_frame_is_noticed() {
        let mut decoder = Decoder::default();
        let bytes = encode("hello").expect("encodes");
        decoder.push(&bytes[..bytes.len() - 1]);
        assert!(decoder.next_frame().expect("no error yet").is_none());
        assert!(matches!(decoder.finish(), Err(FrameError::Truncated)));
    }
}
