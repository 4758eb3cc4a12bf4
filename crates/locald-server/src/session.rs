//! One task per client: frames in, frames out, and nothing that a client does reaches another.
//!
//! A client must say hello first and be the same user. What it asks goes to the supervisor; what the supervisor says goes
//! into a bounded queue. A client that sends garbage, or does not read, is dropped: its connection is closed, so that it never
//! waits for an answer that was left out.

use std::rc::Rc;
use std::time::Duration;

use locald_utils::fail;
use locald_utils::frame::{self, Decoder};
use locald_utils::process::{self, descriptors};
use locald_utils::protocol::{ClientMessage, Failure, FailureCode, Hello, PROTOCOL, ServerMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::supervisor::Message;

/// 1024 messages: every change of a hundred services ten times over. Who is that far behind does not read at all.
const QUEUE: usize = 1024;

/// 5 s: how long a client may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// How the supervisor answers a client.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Tells clients apart.
    pub(crate) number: u64,
    /// Who it is, for the ledger: "pid 812 (locald up)".
    pub(crate) who: Rc<str>,
    queue: mpsc::Sender<Outgoing>,
    /// Told when the queue is full.
    too_slow: Rc<Notify>,
}

/// What goes through a client's queue.
#[derive(Debug)]
enum Outgoing {
    Message(Box<ServerMessage>),
    /// Dropped when everything before it has been written.
    Mark(oneshot::Sender<()>),
}

impl Client {
    /// Sends a message. `false` when the client is gone or too far behind; it is dropped then.
    pub(crate) fn send(&self, message: ServerMessage) -> bool {
        match self.queue.try_send(Outgoing::Message(Box::new(message))) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.too_slow.notify_one();
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// Waits until what was sent has been written, or the client is gone or too slow.
    pub(crate) async fn flushed(&self) {
        let (mark, passed) = oneshot::channel();
        if self.queue.try_send(Outgoing::Mark(mark)).is_ok() {
            // Never sent, only dropped: by the writer when it comes to it, or with the queue.
            let _ = tokio::time::timeout(HELLO_LIMIT, passed).await;
        }
    }
}

/// Serves a client until it leaves.
pub(crate) async fn serve(number: u64, stream: UnixStream, inbox: mpsc::UnboundedSender<Message>) {
    if !descriptors::peer_uid(&stream).is_ok_and(|uid| uid == nix::unistd::getuid().as_raw()) {
        tracing::warn!("a process of another user tried to connect");
        return;
    }
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let command = pid.and_then(process::command);
    let who = format!("pid {} ({})", pid.unwrap_or(0), command.unwrap_or_else(|| "gone".to_owned()));
    let (mut reader, mut writer) = stream.into_split();
    let mut decoder = Decoder::default();
    let hello = tokio::time::timeout(HELLO_LIMIT, read::<Hello>(&mut reader, &mut decoder)).await;
    let Ok(Some(hello)) = hello else { return };
    if write(&mut writer, &Hello::new()).await.is_err() {
        return;
    }
    if hello.protocol > PROTOCOL {
        // The newer side knows what to do about it.
        tracing::info!(client = hello.version, "a newer client has connected");
    }
    let (queue, outbox) = mpsc::channel(QUEUE);
    let too_slow = Rc::new(Notify::new());
    let client = Client { number, who: who.into(), queue, too_slow: too_slow.clone() };
    let _ = inbox.send(Message::Connected);
    let writing = tokio::task::spawn_local(write_all(writer, outbox));
    let closing = writing.abort_handle();
    tokio::select! {
        () = receive(&mut reader, &mut decoder, &client, &inbox) => {}
        () = too_slow.notified() => {
            tracing::warn!(client = %client.who, "a client does not read what it is sent; dropping it");
            closing.abort();
        }
    }
    let _ = inbox.send(Message::Disconnected(number));
    drop(client);
    // What is queued still goes out to a client that only stopped sending, but not to one that does not read.
    if tokio::time::timeout(HELLO_LIMIT, writing).await.is_err() {
        closing.abort();
    }
}

async fn receive(
    reader: &mut OwnedReadHalf,
    decoder: &mut Decoder,
    client: &Client,
    inbox: &mpsc::UnboundedSender<Message>,
) {
    loop {
        match read_frame(reader, decoder).await {
            Some(frame) => match frame::decode::<ClientMessage>(&frame) {
                Ok(message) => {
                    fail::point("a client asks something");
                    if inbox.send(Message::Request { client: client.clone(), message: Box::new(message) }).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let failure = Failure::new(FailureCode::Protocol, format!("the daemon does not understand this request: {error}"))
                        .hint("the command line and the daemon may be of different versions; `locald daemon stop` and try again");
                    // Its id could not be read either; 0 is never asked for.
                    if !client.send(ServerMessage::Failure { id: request_id(&frame), failure }) {
                        return;
                    }
                }
            },
            None => return,
        }
    }
}

/// The id of a request whose rest was not understood.
fn request_id(frame: &frame::Frame) -> u64 {
    #[derive(serde::Deserialize)]
    struct OnlyId {
        id: u64,
    }
    frame::decode::<OnlyId>(frame).map_or(0, |request| request.id)
}

async fn write_all(mut writer: OwnedWriteHalf, mut outbox: mpsc::Receiver<Outgoing>) {
    while let Some(outgoing) = outbox.recv().await {
        match outgoing {
            Outgoing::Message(message) => {
                if write(&mut writer, &message).await.is_err() {
                    return;
                }
            }
            Outgoing::Mark(passed) => drop(passed),
        }
    }
}

async fn write<T: serde::Serialize>(writer: &mut OwnedWriteHalf, message: &T) -> std::io::Result<()> {
    fail::point("a client is to be told something");
    let bytes = frame::encode(message).map_err(std::io::Error::other)?;
    writer.write_all(&bytes).await
}

async fn read<T: serde::de::DeserializeOwned>(reader: &mut OwnedReadHalf, decoder: &mut Decoder) -> Option<T> {
    frame::decode(&read_frame(reader, decoder).await?).ok()
}

/// The next frame; `None` when the client leaves or sends what is no frame. Descriptors it passes are never received:
/// reading without room for them has the kernel close them (unix(7)).
async fn read_frame(reader: &mut OwnedReadHalf, decoder: &mut Decoder) -> Option<frame::Frame> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "a client sent what is no frame");
                return None;
            }
        }
        let mut buffer = [0; 16 * 1024];
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => decoder.push(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use locald_utils::protocol::Request;
    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    async fn in_time<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
    }

    /// A client that has said hello and asked something: its end of the connection, and what answers it.
    async fn connect(
        number: u64,
        inbox: &mpsc::UnboundedSender<Message>,
        messages: &mut mpsc::UnboundedReceiver<Message>,
    ) -> (UnixStream, Client) {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        spawn_local(serve(number, theirs, inbox.clone()));
        let request = ClientMessage { id: 1, request: Request::Daemon, resumes: None };
        for bytes in [frame::encode(&Hello::new()), frame::encode(&request)] {
            ours.write_all(&bytes.expect("a frame")).await.expect("written");
        }
        assert!(matches!(in_time(messages.recv()).await, Some(Message::Connected)));
        let Some(Message::Request { client, .. }) = in_time(messages.recv()).await else { panic!("no request") };
        (ours, client)
    }

    fn message(text: &str) -> ServerMessage {
        ServerMessage::Failure { id: 1, failure: Failure::new(FailureCode::Failed, text) }
    }

    // Single messages used to be left out, and the client stayed, waiting for an answer that never came.
    #[test]
    fn a_client_that_does_not_read_is_dropped_and_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let (inbox, mut messages) = mpsc::unbounded_channel();
            let (mut slow, to_slow) = connect(1, &inbox, &mut messages).await;
            let (quick, to_quick) = connect(2, &inbox, &mut messages).await;
            // More than the queue and the socket hold, with time for the writer in between.
            let text = "x".repeat(10_000);
            while to_slow.send(message(&text)) {
                tokio::task::yield_now().await;
            }
            assert!(matches!(in_time(messages.recv()).await, Some(Message::Disconnected(1))));
            in_time(slow.read_to_end(&mut Vec::new())).await.expect("the end of the connection");
            assert!(!to_slow.send(message("late")));

            assert!(to_quick.send(message("for you")));
            let mut decoder = Decoder::default();
            let (mut reader, _writer) = quick.into_split();
            in_time(read::<Hello>(&mut reader, &mut decoder)).await.expect("a hello");
            let heard = in_time(read::<ServerMessage>(&mut reader, &mut decoder)).await;
            assert_eq!(heard, Some(message("for you")));
        });
    }
}
