//! Devices that another process hosts, and hosting them, by Burn Remote.

use crate::devices::{Devices, DevicesError, Found, Ping, read_token};
use crate::error::TrainError;
use burn::remote::{ConnectError, RemoteHost};
use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
use burn::tensor::Device;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

/// No worker hosts so many devices. Asking for one is answered by a refusal, which needs no session
/// and disturbs none.
const ABSENT: usize = u16::MAX as usize;

/// The device of that name, `remote:ws://HOST:PORT` or with `:INDEX` behind it.
pub(crate) fn connect(name: &str, token: Option<&str>) -> Result<Found, TrainError> {
    let (url, index) = parse(name).ok_or_else(|| DevicesError::Address {
        name: name.to_owned(),
    })?;
    let mut host = RemoteHost::websocket(&url);
    if let Some(token) = token {
        host = host.with_credential(token);
    }
    let connected = Device::remote_options(&host).device_index(index).init();
    let device = connected.map_err(|error| match error {
        ConnectError::Unauthorized => DevicesError::Refused {
            name: name.to_owned(),
        },
        error => DevicesError::Unreachable {
            name: name.to_owned(),
            reason: error.to_string(),
        },
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

/// The address of the worker, and which of its devices.
fn parse(name: &str) -> Option<(String, usize)> {
    let rest = name.strip_prefix("remote:ws://")?;
    // The colons of an IPv6 address stand in brackets.
    let end = rest.find(']').map_or(0, |bracket| bracket + 1);
    let (host, numbers) = rest.split_at(end + rest[end..].find(':')?);
    let mut numbers = numbers[1..].split(':');
    let port: u16 = numbers.next()?.parse().ok()?;
    let index = numbers.next().map_or(Some(0), |index| index.parse().ok())?;
    let valid = !host.is_empty() && numbers.next().is_none();
    valid.then(|| (format!("ws://{host}:{port}"), index))
}

/// What a worker hosts, and for whom.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The devices of this machine, which trainings elsewhere know by their place in this list, from
    /// 0. They are of one kind: CUDA devices, for instance, or the CPU.
    pub devices: Devices,
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The file of the token that a training must know. Without one the worker listens on loopback
    /// addresses only. The token stops strangers, and nobody who reads the traffic, which is not
    /// encrypted: across networks that are not trusted, go through a tunnel.
    pub token_file: Option<PathBuf>,
}

/// Hosts the devices of this machine for trainings elsewhere, until the process is told to end by
/// an interrupt or SIGTERM. A training that vanishes ends its session and nothing else.
///
/// `on_ready` is called with the address once the worker can be reached.
///
/// # Errors
///
/// [`DevicesError::NeedsToken`], [`DevicesError::CannotServe`], or those of
/// [the devices](Devices).
pub fn serve(options: &WorkerOptions, on_ready: &dyn Fn(SocketAddr)) -> Result<(), TrainError> {
    let listen = options.listen;
    let token = options.token_file.as_deref().map(read_token).transpose()?;
    if token.is_none() && !listen.ip().is_loopback() {
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
    let listener = TcpListener::bind(listen).map_err(|error| cannot(&error))?;
    let address = listener.local_addr().map_err(|error| cannot(&error))?;
    on_ready(address);
    let transport = WebSocketTransport::from_listener(listener);
    server.serve(transport).map_err(|error| cannot(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_an_address_and_its_devices_have_places() {
        let parsed = |name| parse(name).map(|(url, index)| format!("{url} {index}"));
        let found = |url: &str| Some(url.to_owned());
        assert_eq!(parsed("remote:ws://gpu1:4000"), found("ws://gpu1:4000 0"));
        assert_eq!(
            parsed("remote:ws://10.0.0.2:80:3"),
            found("ws://10.0.0.2:80 3")
        );
        assert_eq!(parsed("remote:ws://[::1]:80:1"), found("ws://[::1]:80 1"));
        for wrong in [
            "remote:gpu1:4000",
            "remote:ws://gpu1",
            "remote:ws://:4000",
            "remote:ws://gpu1:4000:",
            "remote:ws://gpu1:4000:1:2",
            "remote:ws://gpu1:99999",
            "remote:ws://[::1:80",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
