//! Requests to the hub, one at a time, with proxies, redirects, retries and the token. Owns which host receives what
//! (the token goes only to the hub's own address) and what is retried. `download.rs` interprets the answers. Read next:
//! `token.rs`.

use super::token::{Origin, Token};
use super::{Event, Hub, HubError};
use std::time::Duration;
use ureq::http::{HeaderMap, Request, StatusCode, Uri, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

/// The longest wait for a single 429 answer, and the longest in total.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAITS: Duration = Duration::from_secs(180);
/// How many times an unanswered request is sent, and the pause before the second time; the pause doubles each time.
pub(super) const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// The pause before retry `n`, counted from 1.
pub(super) fn pause(n: u32) -> Duration {
    PAUSE * 2u32.pow(n.saturating_sub(1).min(5))
}

/// What the hub's headers say about a file or repository.
#[derive(Clone, Debug, Default)]
pub(super) struct Meta {
    /// The blob's name: sha256 of the content for large files, git's hash for small ones.
    pub etag: Option<String>,
    pub size: Option<u64>,
}

pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub meta: Meta,
    pub body: Body,
    /// The host that answered after all redirects.
    pub host: String,
    /// Whether that was the hub itself, which may have received the token.
    own: bool,
}

/// Why there is no usable answer.
pub(super) enum Refusal {
    /// 4xx, with the hub's `x-error-code`.
    Status { status: StatusCode, code: String, host: String },
    /// An error with its own message.
    Other(HubError),
}

pub(super) struct Client<'a> {
    hub: &'a Hub,
    pub endpoint: String,
    agent: Agent,
    token: Option<Token>,
    /// The origin of a token that the hub refused, with the status.
    refused: Option<(Origin, StatusCode)>,
    announced: bool,
    /// Whether any request has been answered. Before the first answer, there are fewer retries.
    reached: bool,
    waited: Duration,
    pub tell: &'a mut dyn FnMut(Event<'_>),
}

impl<'a> Client<'a> {
    pub(crate) fn new(hub: &'a Hub, tell: &'a mut dyn FnMut(Event<'_>)) -> Result<Client<'a>, HubError> {
        let set = hub.text("HF_ENDPOINT").unwrap_or("https://huggingface.co");
        let endpoint = set.trim_end_matches('/').to_string();
        if WebOrigin::of(&endpoint).is_none() {
            return Err(HubError::Endpoint { endpoint });
        }
        let mut token = Token::find(hub);
        if let Some(bad) = token.take_if(|token| token.header().is_none()) {
            tell(Event::Note(&format!(
                "note: the token from {} is not a token (it has a space or another character that no token has) and is not \
                 used; {}",
                bad.origin,
                bad.origin.remedy()
            )));
        }
        let agent = agent(hub, RootCerts::PlatformVerifier);
        Ok(Client {
            hub,
            endpoint,
            agent,
            token,
            refused: None,
            announced: false,
            reached: false,
            waited: Duration::ZERO,
            tell,
        })
    }

    /// A remark about the refused token, for messages: " (the token from … `what`)", or nothing.
    pub(crate) fn refused(&self, what: &str) -> String {
        self.refused.as_ref().map_or(String::new(), |(origin, _)| format!(" (the token from {origin} {what})"))
    }

    /// The hub's address without a password, for messages.
    pub(crate) fn shown_endpoint(&self) -> String {
        let uri: Option<Uri> = self.endpoint.parse().ok();
        let path = uri.as_ref().map_or("", |uri| uri.path().trim_end_matches('/'));
        WebOrigin::of(&self.endpoint).map_or(String::new(), |origin| format!("{origin}{path}"))
    }

    /// Sends a HEAD or GET, from byte `from` on, and retries until there is a usable answer.
    pub(crate) fn ask(&mut self, method: &str, url: &str, from: u64) -> Result<Answer, Refusal> {
        let (mut tries, mut waits) = (1, 0);
        loop {
            let answer = match self.follow(method, url, from) {
                Ok(answer) => answer,
                Err(error) => {
                    let most = if self.reached { TRIES } else { 2 };
                    if tries == most || matches!(error, HubError::Protocol { .. }) {
                        return Err(Refusal::Other(error));
                    }
                    std::thread::sleep(pause(tries));
                    tries += 1;
                    continue;
                }
            };
            self.reached = true;
            let status = answer.status;
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                self.announce();
                return Ok(answer);
            }
            match status.as_u16() {
                401 | 403 if answer.own && self.token.is_some() => {
                    self.refused = self.token.take().map(|token| (token.origin, status));
                    continue;
                }
                429 => {
                    waits += 1;
                    // Never less than our own pause, so that a wait of 0 seconds does not flood the server.
                    let wait = asked_wait(&answer.headers).unwrap_or_default().max(pause(waits));
                    if wait > LONGEST_WAIT || self.waited + wait > LONGEST_WAITS {
                        let wait = format!(": it asks to wait {} s", wait.as_secs());
                        return Err(Refusal::Other(HubError::TooManyRequests { host: answer.host, wait }));
                    }
                    (self.tell)(Event::Note(&format!(
                        "{} allows no more requests for now (429); waiting {:.0} s as it asks",
                        answer.host,
                        wait.as_secs_f64().ceil()
                    )));
                    self.waited += wait;
                    std::thread::sleep(wait);
                }
                408 | 500..=599 => {
                    if tries == TRIES {
                        let error = HubError::Server { host: answer.host, status: status.as_u16(), tries };
                        return Err(Refusal::Other(error));
                    }
                    let wait = asked_wait(&answer.headers).filter(|wait| *wait <= LONGEST_WAIT);
                    std::thread::sleep(wait.unwrap_or(pause(tries)));
                    tries += 1;
                }
                _ => {
                    let code = text(&answer.headers, "x-error-code").unwrap_or_default();
                    return Err(Refusal::Status { status, code, host: answer.host });
                }
            }
        }
    }

    /// Reports once that a token was refused, after a request succeeded without it.
    fn announce(&mut self) {
        if let Some((origin, status)) = self.refused.as_ref().filter(|_| !self.announced) {
            self.announced = true;
            (self.tell)(Event::Note(&format!(
                "note: the hub refused the token from {origin} ({}); continuing without it. {}",
                status.as_u16(),
                origin.remedy()
            )));
        }
    }

    /// Sends one request and follows its redirects.
    fn follow(&mut self, method: &str, url: &str, from: u64) -> Result<Answer, HubError> {
        let mut url = url.to_string();
        let mut meta = Meta::default();
        for _ in 0..10 {
            let own = WebOrigin::of(&url).is_some_and(|to| WebOrigin::of(&self.endpoint) == Some(to));
            let mut request = Request::builder().method(method).uri(&url).header(header::ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| own).and_then(Token::header) {
                request = request.header(header::AUTHORIZATION, token);
            }
            let response = self.run(request, &url)?;
            let (status, headers) = (response.status(), response.headers());
            let linked = text(headers, "x-linked-etag");
            // A content store's own etag is not the blob's name; the hub's is.
            if let Some(etag) = linked.clone().or_else(|| text(headers, "etag").filter(|_| own && status.is_success()))
            {
                meta.etag.get_or_insert(etag.trim_start_matches("W/").trim_matches('"').to_string());
            }
            let length = text(headers, "content-length").filter(|_| status.is_success() && from == 0);
            if let Some(size) = text(headers, "x-linked-size").or(length).and_then(|size| size.parse().ok()) {
                meta.size.get_or_insert(size);
            }
            let location = text(headers, "location").filter(|_| status.is_redirection());
            // The first answer with the blob's name has everything that a HEAD needs, so the content store is not
            // asked.
            let done = method == "HEAD" && meta.etag.is_some() && meta.size.is_some();
            match location {
                Some(to) if !done => {
                    let next = join(&url, &to);
                    let no_address =
                        || HubError::Protocol { host: host(&url), detail: "it redirects to no address".into() };
                    url = next.ok_or_else(no_address)?;
                }
                _ => {
                    let status = if location.is_some() { StatusCode::OK } else { status };
                    let (parts, body) = response.into_parts();
                    return Ok(Answer { status, headers: parts.headers, meta, body, host: host(&url), own });
                }
            }
        }
        Err(HubError::Protocol { host: host(&url), detail: "it redirects in circles".into() })
    }

    fn run(
        &mut self,
        request: ureq::http::request::Builder,
        url: &str,
    ) -> Result<ureq::http::Response<Body>, HubError> {
        let fail = |detail: String| HubError::Network { host: host(url), detail };
        let request = request.body(()).map_err(|e| fail(e.to_string()))?;
        let hub = self.hub;
        let send = |agent: &Agent| {
            let request = agent.configure_request(request.clone()).proxy(proxy(hub, url)).build();
            agent.run(request)
        };
        let mut result = send(&self.agent);
        // A minimal container has no certificates; then Mozilla's set is used.
        if let Err(ureq::Error::Rustls(e)) = &result
            && e.to_string().contains("No CA certificates")
        {
            self.agent = agent(hub, RootCerts::WebPki);
            result = send(&self.agent);
        }
        result.map_err(|e| fail(plainly(&e, proxy(hub, url).is_some())))
    }
}

fn agent(hub: &Hub, roots: RootCerts) -> Agent {
    let seconds = |name: &str| {
        let set = hub.text(name).and_then(|value| value.parse().ok()).filter(|n| *n > 0);
        Some(Duration::from_secs(set.unwrap_or(10)))
    };
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("actscope/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(Duration::from_secs(10)))
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(seconds("HF_HUB_ETAG_TIMEOUT"))
        .timeout_per_read(seconds("HF_HUB_DOWNLOAD_TIMEOUT"))
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .build()
        .into()
}

/// The proxy for an address: HTTPS_PROXY or HTTP_PROXY by its scheme, else ALL_PROXY, unless NO_PROXY names the host.
fn proxy(hub: &Hub, url: &str) -> Option<Proxy> {
    let either = |name: &str| hub.text(name).or_else(|| hub.text(&name.to_lowercase()));
    let by_scheme = if url.starts_with("https:") { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let proxy = Proxy::new(either(by_scheme).or_else(|| either("ALL_PROXY"))?).ok()?;
    let mut builder = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    builder = proxy.username().into_iter().fold(builder, |builder, user| builder.username(user));
    builder = proxy.password().into_iter().fold(builder, |builder, password| builder.password(password));
    for entry in either("NO_PROXY").unwrap_or_default().split([',', ' ']).filter(|entry| !entry.is_empty()) {
        // As in curl and Python, a name includes its subdomains.
        builder = builder.no_proxy(entry.trim_start_matches('.'));
        if !entry.contains('*') {
            builder = builder.no_proxy(&format!(".{}", entry.trim_start_matches('.')));
        }
    }
    let proxy = builder.build().ok()?;
    let uri = url.parse().ok()?;
    (!proxy.is_no_proxy(&uri)).then_some(proxy)
}

/// Describes an error without addresses and passwords that it may contain.
fn plainly(e: &ureq::Error, proxied: bool) -> String {
    let by = if proxied { " (through a proxy)" } else { "" };
    let what = match e {
        ureq::Error::HostNotFound => "its name cannot be resolved".into(),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::ConnectProxyFailed(reason) => return format!("the proxy did not connect: {reason}"),
        // rustls reports handshake errors as invalid data.
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => untrusted(e),
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::Rustls(e) => untrusted(e),
        ureq::Error::ConnectionFailed => "the connection failed".into(),
        ureq::Error::Protocol(e) => format!("its answer is not HTTP ({e})"),
        other => other.to_string(),
    };
    what + by
}

fn untrusted(e: &dyn std::fmt::Display) -> String {
    format!(
        "its certificate is not trusted ({e}); where a company's proxy opens connections, let SSL_CERT_FILE name the \
         company's certificates"
    )
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_string)
}

/// How long the server asks to wait: `Retry-After` in seconds, or the hub's `RateLimit: …;t=37`.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, "retry-after").and_then(|value| value.trim().parse().ok());
    let limit = || text(headers, "ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok());
    seconds.or_else(limit).map(Duration::from_secs)
}

/// Scheme, host and port, which decide where a token may be sent. Parsed by the same parser as requests, so that the
/// two cannot disagree about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WebOrigin {
    scheme: &'static str,
    /// In lower case.
    host: String,
    port: u16,
}

impl WebOrigin {
    /// `None` for anything but an http or https address.
    fn of(url: &str) -> Option<WebOrigin> {
        let uri: Uri = url.parse().ok()?;
        let (scheme, usual) = match uri.scheme_str()? {
            "https" => ("https", 443),
            "http" => ("http", 80),
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_lowercase();
        Some(WebOrigin { scheme, host, port: uri.port_u16().unwrap_or(usual) })
    }

    fn usual_port(&self) -> bool {
        matches!((self.scheme, self.port), ("https", 443) | ("http", 80))
    }
}

impl std::fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        if self.usual_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// The host, for messages: no path, no signature, no password.
pub(super) fn host(url: &str) -> String {
    let origin = WebOrigin::of(url).map(|origin| origin.to_string()).unwrap_or_default();
    origin.split_once("://").map_or("?".into(), |(_, host)| host.to_string())
}

/// The target of a redirect: an address, or a path on the same host. `None` if it is not a valid address.
fn join(base: &str, to: &str) -> Option<String> {
    let uri: Uri = base.parse().ok()?;
    let (scheme, authority, path) = (uri.scheme_str()?, uri.authority()?, uri.path());
    // A colon before the first slash means a scheme.
    let joined = if to.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
        to.into()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let folder = path.rfind('/').map_or("", |at| &path[..at]);
        format!("{scheme}://{authority}{folder}/{to}")
    };
    WebOrigin::of(&joined).map(|_| joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let base = "http://hub:80/a/b?c";
        let to = |to: &str| join(base, to);
        assert_eq!(to("https://cdn/x?y").as_deref(), Some("https://cdn/x?y"));
        assert_eq!(to("//cdn/x").as_deref(), Some("http://cdn/x"));
        assert_eq!(to("/x").as_deref(), Some("http://hub:80/x"));
        assert_eq!(to("x").as_deref(), Some("http://hub:80/a/x"));
        assert_eq!(join("http://hub", "x").as_deref(), Some("http://hub/x"));
        assert_eq!(to("ftp://cdn/x"), None);
        assert_eq!(to("http://"), None);
    }

    /// Seen red with the host parsed up to the first `@`, and with the whole text compared.
    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |url: &str| WebOrigin::of(url);
        assert_eq!(of("https://user:pw@Hub:8/x?y").unwrap().to_string(), "https://hub:8");
        assert_eq!(of("https://hub:443/x"), of("https://HUB"));
        for other in ["https://hub.evil/x", "http://hub/x", "https://hub@evil/", "https://hub:444", "https://hub:80"] {
            assert!(of(other).is_some() && of(other) != of("https://hub"), "{other}");
        }
        for none in ["hub", "ftp://hub", "https://", "https://hub\\@evil", "/x", ""] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(host("https://user:pw@hub:8/x?sig=secret"), "hub:8");
    }
}
