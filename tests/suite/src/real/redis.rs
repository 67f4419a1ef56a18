//! redis-server without a socket: a server must listen when it starts, but the first command of the append-only file
//! it loads closes the port (or a client does so later), and the last one opens it again.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::programs::{Product, installed, put};
use crate::account::give_to_owner_of;
use crate::process::{self, PATIENCE, Running};
use crate::workshop::Workshop;

/// What the server loads when it starts.
pub(super) const BASE: &str = "appendonlydir/appendonly.aof.1.base.aof";
/// What it appends to.
pub(super) const WRITTEN: &str = "appendonlydir/appendonly.aof.1.incr.aof";
const MANIFEST: &str = "file appendonly.aof.1.base.aof seq 1 type b\n\
                        file appendonly.aof.1.incr.aof seq 1 type i\n";
/// Where the port is noted.
const PORT: &str = "port";
/// Where the answer of the server is noted.
const ANSWER: &str = "answer";
/// Keys that expire while the server runs.
const VOLATILE: usize = 3000;

/// Commands as the protocol and the append-only file have them.
#[derive(Default)]
struct Commands(Vec<u8>);

impl Commands {
    fn add(&mut self, words: &[&str]) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            write!(text, "${}\r\n{word}\r\n", word.len()).expect("text grows");
        }
        self.0.extend(text.as_bytes());
    }
}

fn prepare(workshop: &Workshop, folder: &Path, fill: fn(&mut Commands, &str)) -> Result<Command> {
    let server = installed("redis-server")?;
    // Free a moment ago, which is as much as can be known.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port().to_string();
    let place = folder.join("appendonlydir");
    fs::create_dir(&place).context("making the folder of append-only files")?;
    give_to_owner_of(folder, &place)?;
    let mut commands = Commands::default();
    fill(&mut commands, &port);
    put(folder, BASE, commands.0)?;
    put(folder, WRITTEN, "")?;
    put(folder, "appendonlydir/appendonly.aof.manifest", MANIFEST)?;
    put(folder, PORT, &port)?;
    let mut command = workshop.program(&server);
    command.args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", "."]);
    command.args(["--enable-debug-command", "yes", "--auto-aof-rewrite-percentage", "0"]);
    Ok(command)
}

/// A server with much to load, and scripts to run as it loads.
pub(super) fn loading(workshop: &Workshop, folder: &Path) -> Result<Command> {
    const SCRIPT: &str = "local s = 0 for i = 1, 60000 do s = s + i * ARGV[1] % 7 end \
                          redis.call('SET', KEYS[1], s)";
    prepare(workshop, folder, |commands, port| {
        commands.add(&["CONFIG", "SET", "port", "0"]);
        commands.add(&["SELECT", "0"]);
        for number in 0..120_000 {
            commands.add(&["RPUSH", &format!("list:{}", number % 1000), &format!("{number:0500}")]);
            if number % 500 == 0 {
                let (key, value) = (format!("sum:{number}"), number.to_string());
                commands.add(&["EVAL", SCRIPT, "1", &key, &value]);
            }
        }
        commands.add(&["CONFIG", "SET", "port", port]);
    })
}

/// A server with keys that will expire, each of which makes it write.
pub(super) fn writing(workshop: &Workshop, folder: &Path) -> Result<Command> {
    prepare(workshop, folder, |commands, _| {
        commands.add(&["SELECT", "0"]);
        for number in 0..VOLATILE {
            commands.add(&["SET", &volatile(number), "for a moment"]);
            commands.add(&["HSET", &format!("kept:{}", number % 100), &number.to_string(), "for ever"]);
        }
    })
}

fn volatile(number: usize) -> String {
    format!("volatile:{number:0100}")
}

/// A connection to the server.
struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects; `None` while nobody listens.
    fn connect(folder: &Path) -> Option<Self> {
        let port: u16 = fs::read_to_string(folder.join(PORT)).ok()?.parse().ok()?;
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        Some(Client(BufReader::new(stream)))
    }

    /// Sends a command; its answer, of one line or one string.
    fn ask(&mut self, words: &[&str]) -> Result<String> {
        let mut commands = Commands::default();
        commands.add(words);
        self.0.get_mut().write_all(&commands.0).with_context(|| words[0].to_owned())?;
        let mut line = String::new();
        self.0.read_line(&mut line).with_context(|| words[0].to_owned())?;
        let line = line.trim_end();
        if line.starts_with('-') {
            bail!("redis answers {} with {line}", words[0]);
        }
        let Some(length) = line.strip_prefix('$') else { return Ok(line.to_owned()) };
        let mut text = vec![0; length.parse::<usize>()? + 2];
        self.0.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// A digest of all that is stored, and the number of keys.
    fn digest(&mut self) -> Result<String> {
        Ok(format!("{} {}", self.ask(&["DEBUG", "DIGEST"])?, self.ask(&["DBSIZE"])?))
    }
}

fn ready(folder: &Path) -> Result<Client> {
    process::await_some(PATIENCE, || {
        let mut client = Client::connect(folder)?;
        client.ask(&["PING"]).is_ok_and(|answer| answer == "+PONG").then_some(client)
    })
    .context("redis-server does not answer")
}

/// As a client: lets the keys expire one after the other, beginning in a moment, then closes the port.
pub(super) fn fill_and_close(folder: &Path) -> Result<()> {
    const SCRIPT: &str = "for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], 500 + i) end return 1";
    let mut client = ready(folder)?;
    let keys: Vec<String> = (0..VOLATILE).map(volatile).collect();
    let count = VOLATILE.to_string();
    let words: Vec<&str> =
        ["EVAL", SCRIPT, &count].into_iter().chain(keys.iter().map(String::as_str)).collect();
    client.ask(&words)?;
    ensure!(client.ask(&["CONFIG", "SET", "port", "0"])? == "+OK", "the port is not closed");
    drop(client);
    // The server closes its end of the connection in its next round.
    std::thread::sleep(Duration::from_millis(150));
    Ok(())
}

/// The keys that the append-only file says were deleted.
fn deleted(folder: &Path) -> Result<Vec<String>> {
    let text = fs::read(folder.join(WRITTEN)).context("reading the append-only file")?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let words: Vec<&str> = text.split("\r\n").collect();
    // *2 $3 DEL $109 KEY
    let keys = words.windows(3).filter(|words| words[0].eq_ignore_ascii_case("del"));
    Ok(keys.map(|words| words[2].to_owned()).collect())
}

pub(super) fn is_empty_of_volatile_keys(folder: &Path) -> bool {
    // One looks again when the file is just being written.
    deleted(folder).is_ok_and(|keys| keys.len() >= VOLATILE)
}

/// Each key deleted once; what another server finds in the files.
pub(super) fn written(workshop: &Workshop, folder: &Path) -> Result<Vec<Product>> {
    let mut keys = deleted(folder)?;
    keys.sort_unstable();
    let mut command = workshop.program(&installed("redis-server")?);
    let port = fs::read_to_string(folder.join(PORT))?;
    command.args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "", "--dir", "."]);
    command.args(["--enable-debug-command", "yes"]).current_dir(folder);
    let server = Running::start(command, folder, "second")?;
    let digest = ready(folder).and_then(|mut client| client.digest());
    process::signal(server.child.id(), rustix::process::Signal::TERM);
    server.finish(PATIENCE)?.expect_code("the second server", 0)?;
    let product = |name: &str, text: String| Product { name: name.to_owned(), content: text.into_bytes() };
    Ok(vec![product("the list of deleted keys", keys.join("\n")), product("what is stored", digest?)])
}

/// Whether the server listens again; what it answers is noted.
pub(super) fn answers(folder: &Path) -> bool {
    let Some(mut client) = Client::connect(folder) else { return false };
    let loaded = client.ask(&["PING"]).is_ok_and(|answer| answer == "+PONG");
    loaded && client.digest().is_ok_and(|digest| fs::write(folder.join(ANSWER), digest).is_ok())
}

/// What the server itself said of what it has loaded.
pub(super) fn answered(_: &Workshop, folder: &Path) -> Result<Vec<Product>> {
    super::programs::files(folder, &[ANSWER])
}
