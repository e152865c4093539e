//! Devices that another process hosts, and hosting them, by Burn Remote.

use crate::devices::{Devices, DevicesError, Found, Ping, read_token};
use crate::error::TrainError;
use burn::remote::{ConnectError, EndpointId, IrohHost, IrohRelays, RemoteHost};
use burn::server::{
    IrohIdentity, IrohTransport, RemoteServer, TokenAuthorizer, Transport, WebSocketTransport,
};
use burn::tensor::Device;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

/// No worker hosts so many devices. Asking for one is answered by a refusal, which needs no session
/// and disturbs none.
const ABSENT: usize = u16::MAX as usize;

/// Where a worker is.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    /// The URL of a WebSocket.
    WebSocket(String),
    /// The identity of an Iroh endpoint, and the address at which it is, if that is known.
    Iroh(EndpointId, Option<(String, u16)>),
}

/// The device of that name, see [`Devices::names`].
pub(crate) fn connect(name: &str, token: Option<&str>) -> Result<Found, TrainError> {
    let (address, index) = parse(name).ok_or_else(|| DevicesError::Address {
        name: name.to_owned(),
    })?;
    let unreachable = |reason: String| DevicesError::Unreachable {
        name: name.to_owned(),
        reason,
    };
    let mut host = host(address).map_err(|error| unreachable(error.to_string()))?;
    if let Some(token) = token {
        host = host.with_credential(token);
    }
    let connected = Device::remote_options(&host).device_index(index).init();
    let device = connected.map_err(|error| match error {
        ConnectError::Unauthorized => DevicesError::Refused {
            name: name.to_owned(),
        },
        error => unreachable(error.to_string()),
    })?;
    let ping: Ping =
        Arc::new(
            move || match Device::remote_options(&host).device_index(ABSENT).init() {
                Ok(_) | Err(ConnectError::NoSuchDevice { .. }) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
        );
    Ok(Found {
        name: name.to_owned(),
        device,
        ping: Some(ping),
    })
}

fn host(address: Address) -> std::io::Result<RemoteHost> {
    Ok(match address {
        Address::WebSocket(url) => RemoteHost::websocket(&url),
        Address::Iroh(id, None) => RemoteHost::iroh(id),
        Address::Iroh(id, Some(at)) => {
            let host = IrohHost::new(id).with_relays(IrohRelays::Disabled);
            RemoteHost::iroh(at.to_socket_addrs()?.fold(host, IrohHost::with_address))
        }
    })
}

/// The address of the worker, and which of its devices.
fn parse(name: &str) -> Option<(Address, usize)> {
    let rest = name.strip_prefix("remote:")?;
    if let Some(rest) = rest.strip_prefix("ws://") {
        let (host, port, index) = host_and_numbers(rest)?;
        return Some((Address::WebSocket(format!("ws://{host}:{port}")), index));
    }
    let (id, at, index) = match rest.split_once('@') {
        Some((id, rest)) => {
            let (host, port, index) = host_and_numbers(rest)?;
            // Only URLs have brackets around an IPv6 address.
            let host = host.trim_matches(['[', ']']).to_owned();
            (id, Some((host, port)), index)
        }
        None => match rest.split_once(':') {
            Some((id, index)) => (id, None, index.parse().ok()?),
            None => (rest, None, 0),
        },
    };
    Some((Address::Iroh(id.parse().ok()?, at), index))
}

/// `HOST:PORT` or `HOST:PORT:INDEX`.
fn host_and_numbers(text: &str) -> Option<(&str, u16, usize)> {
    // The colons of an IPv6 address stand in brackets.
    let end = text.find(']').map_or(0, |bracket| bracket + 1);
    let (host, numbers) = text.split_at(end + text[end..].find(':')?);
    let mut numbers = numbers[1..].split(':');
    let port = numbers.next()?.parse().ok()?;
    let index = numbers.next().map_or(Some(0), |index| index.parse().ok())?;
    let valid = !host.is_empty() && numbers.next().is_none();
    valid.then_some((host, port, index))
}

/// What a worker hosts, and for whom.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The devices of this machine, which trainings elsewhere know by their place in this list,
    /// from 0. They are of one kind: CUDA devices, for instance, or the CPU.
    pub devices: Devices,
    /// The address to listen on. Over Iroh only its port counts.
    pub listen: SocketAddr,
    /// The file of the token that a training must know. Without one the worker listens on loopback
    /// addresses only.
    pub token_file: Option<PathBuf>,
    /// The file of the identity under which the worker is known over Iroh, which encrypts; it is
    /// made if it is missing. Default: none, and a WebSocket, which is not encrypted: the token
    /// then stops strangers, and nobody who reads the traffic.
    pub key_file: Option<PathBuf>,
}

/// Hosts the devices of this machine for trainings elsewhere, until the process is told to end by
/// an interrupt or SIGTERM. A training that vanishes ends its session and nothing else.
///
/// `on_ready` is called with what a training calls the first device, such as
/// `remote:ws://10.0.0.2:4000`.
///
/// # Errors
///
/// [`DevicesError::NeedsToken`], [`DevicesError::CannotServe`], or those of
/// [the devices](Devices).
pub fn serve(options: &WorkerOptions, on_ready: &dyn Fn(&str)) -> Result<(), TrainError> {
    let listen = options.listen;
    let token = options.token_file.as_deref().map(read_token).transpose()?;
    let everywhere = options.key_file.is_some() || !listen.ip().is_loopback();
    if token.is_none() && everywhere {
        return Err(DevicesError::NeedsToken { listen }.into());
    }
    let cannot = |error: &dyn std::error::Error| {
        let reason = crate::error::with_causes(error);
        TrainError::from(DevicesError::CannotServe { listen, reason })
    };
    let found = options.devices.find()?;
    let mut server = RemoteServer::new(found.into_iter().map(|found| found.device));
    if let Some(token) = token {
        let authorizer = TokenAuthorizer::new(token).map_err(|error| cannot(&error))?;
        server = server.with_authorizer(authorizer);
    }
    let transport: Transport = match &options.key_file {
        Some(path) => {
            let identity = IrohIdentity::load_or_create(path);
            let identity = identity.map_err(|source| TrainError::io("read", path, source))?;
            let transport = IrohTransport::new(identity).with_port(listen.port());
            on_ready(&format!("remote:{}@{listen}", transport.id()));
            transport.into()
        }
        None => {
            let listener = TcpListener::bind(listen).map_err(|error| cannot(&error))?;
            let address = listener.local_addr().map_err(|error| cannot(&error))?;
            on_ready(&format!("remote:ws://{address}"));
            WebSocketTransport::from_listener(listener).into()
        }
    };
    server.serve(transport).map_err(|error| cannot(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_an_address_and_its_devices_have_places() {
        let socket = |url: &str, index| Some((Address::WebSocket(url.to_owned()), index));
        let key = "ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6";
        let id: EndpointId = key.parse().unwrap();
        let iroh = |at: Option<(&str, u16)>, index| {
            let at = at.map(|(host, port)| (host.to_owned(), port));
            Some((Address::Iroh(id, at), index))
        };
        let with_key = |rest: &str| parse(&format!("remote:{key}{rest}"));
        assert_eq!(parse("remote:ws://gpu1:4000"), socket("ws://gpu1:4000", 0));
        assert_eq!(
            parse("remote:ws://10.0.0.2:80:3"),
            socket("ws://10.0.0.2:80", 3)
        );
        assert_eq!(parse("remote:ws://[::1]:80:1"), socket("ws://[::1]:80", 1));
        assert_eq!(with_key(""), iroh(None, 0));
        assert_eq!(with_key(":2"), iroh(None, 2));
        assert_eq!(with_key("@gpu1:4000:1"), iroh(Some(("gpu1", 4000)), 1));
        assert_eq!(with_key("@[::1]:4000"), iroh(Some(("::1", 4000)), 0));
        for wrong in [
            "remote:gpu1:4000",
            "remote:ws://gpu1",
            "remote:ws://:4000",
            "remote:ws://gpu1:4000:",
            "remote:ws://gpu1:4000:1:2",
            "remote:ws://gpu1:99999",
            "remote:ws://[::1:80",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        assert_eq!(with_key("@gpu1"), None);
    }
}
