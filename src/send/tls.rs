//! TLS toward partners: whom we believe, and what it means when we don't.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible,
    RootCertStore, SignatureScheme,
};

/// TLS 1.2 and 1.3 (RFC 8996 retired what came before) with the platform's certificate authorities and those in
/// `ca_files` (PEM); a server may also show one of the latter as its own certificate. The platform's are what `SSL_CERT_FILE` or `SSL_CERT_DIR` name, where set.
///
/// # Errors
/// One line, naming the file: it can't be read, holds no certificate, or one that is no authority's. Without
/// `ca_files`, also a machine that has no certificate authorities.
pub fn client_config<P: AsRef<Path>>(ca_files: &[P]) -> Result<ClientConfig, String> {
    let (mut roots, mut pinned) = (RootCertStore::empty(), Vec::new());
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    for file in ca_files {
        let added = add_file(&mut roots, file.as_ref())
            .map_err(|problem| format!("CA file {}: {problem}", file.as_ref().display()))?;
        pinned.extend(added);
    }
    if roots.is_empty() {
        let told = native.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!("no CA certificates (install the package ca-certificates){told}"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let verifier = verifier.map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| error.to_string())?;
    let verifier = Arc::new(PinningVerifier { webpki: verifier, pinned });
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Adds a file's certificates to the authorities, and returns them.
fn add_file(roots: &mut RootCertStore, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| error.to_string())?;
    let mut added = Vec::new();
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate.clone()).map_err(|error| error.to_string())?;
        added.push(certificate);
    }
    if added.is_empty() { Err("holds no certificate in PEM form".to_owned()) } else { Ok(added) }
}

/// The usual verifier, which also takes a server's own certificate where exactly that one was named: webpki refuses one
/// with `CA:TRUE`, which is how `openssl req -x509` makes them, as `CaUsedAsEndEntity`.
#[derive(Debug)]
struct PinningVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for PinningVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if format!("{why:?}").contains("CaUsedAsEndEntity") && self.pinned.contains(end_entity) =>
            {
                // The dates are good: webpki checks them before it asks what the certificate may be used for.
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// rustls's own error among the causes of `error`. `io::Error`s must be opened: their `source` passes over what they
/// hold, and tokio-rustls and hyper-rustls put one around another.
pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let inside = |error: &'a (dyn StdError + 'static)| match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
        None => error.source(),
    };
    std::iter::successors(Some(error), |error| inside(*error)).find_map(|error| error.downcast_ref())
}

/// A stable code for why TLS did not stand: `tls_certificate_expired`, `tls_certificate_not_yet_valid`, `tls_wrong_name`,
/// `tls_unknown_issuer`, `tls_bad_certificate`, `tls_protocol_version` (the other side has neither 1.2 nor 1.3),
/// `tls_refused_by_peer` or `tls_failed`.
pub fn code(error: &Error) -> &'static str {
    use CertificateError as Certificate;
    match error {
        Error::InvalidCertificate(certificate) => match certificate {
            Certificate::Expired | Certificate::ExpiredContext { .. } => "tls_certificate_expired",
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "tls_certificate_not_yet_valid"
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => "tls_wrong_name",
            Certificate::UnknownIssuer => "tls_unknown_issuer",
            _ => "tls_bad_certificate",
        },
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "tls_protocol_version",
        Error::AlertReceived(_) => "tls_refused_by_peer",
        _ => "tls_failed",
    }
}
