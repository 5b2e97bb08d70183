//! A time limit for code that knows nothing of this crate: a blocking read is ended, and has read nothing.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use desist::error::AsStop;
use desist::{DeadlineExceeded, Stop, fail_after};

/// The errors of the program: stops travel beside its own.
#[derive(Debug)]
enum Error {
    Stop(Stop),
    Late(DeadlineExceeded),
    Io(io::Error),
}

impl AsStop for Error {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Error::Stop(stop) => Some(stop),
            _ => None,
        }
    }
}

impl From<DeadlineExceeded> for Error {
    fn from(late: DeadlineExceeded) -> Error {
        Error::Late(late)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match Stop::of_io_error(&error) {
            Some(stop) => Error::Stop(stop),
            None => Error::Io(error),
        }
    }
}

/// Ordinary code with the standard library.
fn ask(server: &mut TcpStream) -> io::Result<String> {
    server.write_all(b"anybody there?\n")?;
    let mut answer = String::new();
    BufReader::new(server).read_line(&mut answer)?;
    Ok(answer)
}

pub(crate) fn main() {
    // It accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it is bound");
    let mut server = TcpStream::connect(address).expect("it listens");
    let answer = fail_after(Duration::from_millis(20), || Ok(ask(&mut server)?));
    match &answer {
        Ok(answer) => println!("the answer is {answer}"),
        Err(Error::Late(late)) => println!("no answer: {late}"),
        Err(Error::Io(error)) => println!("the connection failed: {error}"),
        Err(Error::Stop(stop)) => println!("an enclosing scope or task is cancelled: {stop}"),
    }
    assert!(matches!(answer, Err(Error::Late(_))));
}
