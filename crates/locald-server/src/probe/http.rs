//! One GET, over TLS if that is asked for, and the status of the answer. Nothing is followed, kept or cached.

use std::io;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use locald_utils::health::HttpProbe;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// The name that a certificate has to be for.
const HOST: &str = "localhost";

/// Asks for a path, and returns the status of the answer.
///
/// # Errors
/// When there is no connection, no trust in its certificate, or no answer that is HTTP.
pub(super) async fn get(probe: &HttpProbe, port: u16, families: (bool, bool)) -> io::Result<StatusCode> {
    let request = request(probe, port)?;
    let stream = super::connect(port, families).await?;
    if !probe.tls {
        return exchange(stream, request).await;
    }
    let config = if probe.insecure { trusting()? } else { verifying().await? };
    let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(distrust)?;
    exchange(stream, request).await
}

fn request(probe: &HttpProbe, port: u16) -> io::Result<Request<Empty<Bytes>>> {
    let default = [
        ("host", format!("{HOST}:{port}")),
        ("user-agent", format!("locald/{}", env!("CARGO_PKG_VERSION"))),
        ("accept", "*/*".to_owned()),
        ("connection", "close".to_owned()),
    ];
    let is_said = |name: &str| probe.headers.keys().any(|said| said.eq_ignore_ascii_case(name));
    let mut request = Request::get(&probe.path);
    for (name, value) in default.iter().filter(|(name, _)| !is_said(name)) {
        request = request.header(*name, value);
    }
    for (name, value) in &probe.headers {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(io::Error::other)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<StatusCode> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The connection is what moves; that it is over comes with the answer, or instead of one.
        _ = &mut connection => answer.await,
    };
    answer.map(|answer| answer.status()).map_err(|error| explain(&error))
}

/// What went wrong, as short as people say it.
fn explain(error: &hyper::Error) -> io::Error {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None if error.is_incomplete_message() => io::Error::other("closed the connection without an answer"),
        None if error.is_parse() => io::Error::other("answered something that is not HTTP"),
        None => io::Error::other(error.to_string()),
    }
}

/// Why TLS was not agreed on, in words.
fn distrust(error: io::Error) -> io::Error {
    let wrong = match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        // Whoever answers in plain text sends what is no record of TLS.
        Some(rustls::Error::InvalidMessage(_)) => return io::Error::other("it does not speak TLS"),
        Some(rustls::Error::InvalidCertificate(wrong)) => wrong,
        Some(_) => return error,
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            return io::Error::other("closed the connection without an answer");
        }
        None => return error,
    };
    let what = match wrong {
        CertificateError::UnknownIssuer => "is signed by nobody this system trusts",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "is not for localhost",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet",
        // One that signs others and itself; rustls has no variant for it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is signed by nobody this system trusts"
        }
        // The others are mistakes in the making of a certificate, and rare.
        _ => return io::Error::other(format!("its certificate is not valid ({wrong:?}); `insecure = true` takes it")),
    };
    io::Error::other(format!("its certificate {what}; `insecure = true` takes it"))
}

/// Trusts whom the system's OpenSSL trusts now: what is in its file of certificates. Read in a thread.
async fn verifying() -> io::Result<Arc<ClientConfig>> {
    let read = || {
        let found = openssl_probe::probe();
        let Some(file) = found.cert_file else {
            return Err(io::Error::other("this system has no file of certificates to trust"));
        };
        let certificates = CertificateDer::pem_file_iter(&file).map_err(io::Error::other)?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Trusts anybody, for those who say `insecure`.
fn trusting() -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Takes any certificate. That the other side has its key is still demanded.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn probe(tls: bool, insecure: bool) -> HttpProbe {
        HttpProbe { path: "/".into(), port: None, status: Vec::new(), headers: BTreeMap::new(), tls, insecure }
    }

    /// Asks somebody who reads a request, and says `answer`.
    async fn ask(probe: &HttpProbe, answer: &'static [u8], tls: Option<TlsAcceptor>) -> io::Result<StatusCode> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("a port").port();
        let server = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            match tls {
                Some(tls) => {
                    // Whoever does not trust us breaks off.
                    if let Ok(stream) = tls.accept(stream).await {
                        say(stream, answer).await;
                    }
                }
                None => say(stream, answer).await,
            }
        };
        tokio::join!(get(probe, port, (true, false)), server).0
    }

    async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
        let mut request = [0; 4096];
        let mut read = 0;
        while !request[..read].ends_with(b"\r\n\r\n") {
            match stream.read(&mut request[read..]).await {
                Ok(count @ 1..) => read += count,
                Ok(0) | Err(_) => return,
            }
        }
        // Whoever asked may have gone.
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    /// A server whose certificate nobody has signed but itself.
    fn self_signed() -> TlsAcceptor {
        let certificate = CertificateDer::from(include_bytes!("testdata/cert.der").as_slice());
        let key = PrivateKeyDer::try_from(include_bytes!("testdata/key.der").as_slice()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        TlsAcceptor::from(Arc::new(config))
    }

    #[test]
    fn the_status_is_the_answer_whatever_follows_it() {
        let status = |answer| run(ask(&probe(false, false), answer, None)).map(|status| status.as_u16());
        assert_eq!(status(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").expect("an answer"), 200);
        assert_eq!(status(b"HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n").expect("an answer"), 302);
        assert_eq!(status(b"HTTP/1.0 503 \r\n\r\n").expect("an answer"), 503);
        assert_eq!(status(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\ncut").expect("an answer"), 200);
    }

    #[test]
    fn what_is_no_answer_is_told_in_words() {
        let error = |answer| run(ask(&probe(false, false), answer, None)).expect_err("no answer").to_string();
        assert_eq!(error(b""), "closed the connection without an answer");
        assert_eq!(error(b"220 mail.example ESMTP\r\n"), "answered something that is not HTTP");
    }

    #[test]
    fn a_certificate_that_nobody_has_signed_is_taken_only_when_that_is_said() {
        let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
        let trusting = run(ask(&probe(true, true), answer, Some(self_signed())));
        assert_eq!(trusting.expect("an answer"), StatusCode::NO_CONTENT);
        let error = run(ask(&probe(true, false), answer, Some(self_signed()))).expect_err("no trust");
        let said = "its certificate is signed by nobody this system trusts; `insecure = true` takes it";
        assert_eq!(error.to_string(), said);
        // One that might sign others is told in the same words.
        let other = rustls::OtherError(Arc::new(io::Error::other("CaUsedAsEndEntity")));
        let error = rustls::Error::InvalidCertificate(CertificateError::Other(other));
        assert_eq!(distrust(io::Error::new(io::ErrorKind::InvalidData, error)).to_string(), said);
    }

    #[test]
    fn who_is_asked_for_tls_and_has_none_does_not_speak_it() {
        let error = run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let port = listener.local_addr().expect("a port").port();
            let server = async {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut hello = [0; 16];
                stream.read_exact(&mut hello).await.expect("a greeting");
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("written");
            };
            let probe = probe(true, true);
            tokio::join!(get(&probe, port, (true, false)), server).0
        });
        assert_eq!(error.expect_err("no TLS").to_string(), "it does not speak TLS");
    }
}
