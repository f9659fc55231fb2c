//! Codecs beside parsers that see the whole stream at once: wherever it is cut, the same messages
//! and the same error at the same place; and what is encoded is what is decoded.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ruduo::{Buffer, DecodeError, EncodeError, FrameCodec, LineCodec};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Format {
    Lf,
    CrLf,
    LfOrCrLf,
    Frames { width: Width, little_endian: bool, counts_itself: bool },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Width {
    One,
    Two,
    Four,
    Eight,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    format: Format,
    max_len: u8,
    /// The lengths of the pieces in which the stream comes, and of the messages to encode.
    pieces: [u8; 8],
    stream: &'a [u8],
}

enum Codec {
    Lines(LineCodec),
    Frames(FrameCodec),
}

impl Codec {
    fn new(format: Format, max_len: usize) -> Codec {
        let lines = |lines: LineCodec| Codec::Lines(lines.max_len(max_len));
        match format {
            Format::Lf => lines(LineCodec::lf()),
            Format::CrLf => lines(LineCodec::crlf()),
            Format::LfOrCrLf => lines(LineCodec::lf_or_crlf()),
            Format::Frames { width, little_endian, counts_itself } => {
                let mut frames = match width {
                    Width::One => FrameCodec::u8(),
                    Width::Two => FrameCodec::u16(),
                    Width::Four => FrameCodec::u32(),
                    Width::Eight => FrameCodec::u64(),
                };
                if little_endian {
                    frames = frames.little_endian();
                }
                if counts_itself {
                    frames = frames.counts_itself();
                }
                Codec::Frames(frames.max_len(max_len))
            }
        }
    }

    fn take<'b>(&self, input: &'b mut Buffer) -> Result<Option<&'b [u8]>, DecodeError> {
        match self {
            Codec::Lines(lines) => lines.take(input),
            Codec::Frames(frames) => frames.take(input),
        }
    }

    fn encode(&self, message: &[u8]) -> Result<Buffer, EncodeError> {
        match self {
            Codec::Lines(lines) => lines.encode(message),
            Codec::Frames(frames) => frames.encode(message),
        }
    }
}

/// What is at the beginning of a stream.
enum Next {
    /// A message, and how many bytes it takes.
    Message(Vec<u8>, usize),
    Unfinished,
    Refused,
}

/// The format, told as naively as can be.
fn next(format: Format, max_len: usize, stream: &[u8]) -> Next {
    match format {
        Format::Lf | Format::CrLf | Format::LfOrCrLf => next_line(format, max_len, stream),
        Format::Frames { width, little_endian, counts_itself } => {
            let width = match width {
                Width::One => 1,
                Width::Two => 2,
                Width::Four => 4,
                Width::Eight => 8,
            };
            let Some(header) = stream.get(..width) else { return Next::Unfinished };
            let mut digits = header.to_vec();
            if little_endian {
                digits.reverse();
            }
            let value = digits.iter().fold(0, |value, digit| value * 256 + i128::from(*digit));
            let len = value - if counts_itself { width as i128 } else { 0 };
            if len < 0 || len > max_len as i128 {
                return Next::Refused;
            }
            let whole = width + len as usize;
            match stream.get(width..whole) {
                Some(message) => Next::Message(message.to_vec(), whole),
                None => Next::Unfinished,
            }
        }
    }
}

fn next_line(format: Format, max_len: usize, stream: &[u8]) -> Next {
    for at in 0..=stream.len() {
        let rest = &stream[at..];
        let end = match format {
            Format::Lf => rest.starts_with(b"\n").then_some(1),
            Format::CrLf => rest.starts_with(b"\r\n").then_some(2),
            _ if rest.starts_with(b"\r\n") => Some(2),
            _ => rest.starts_with(b"\n").then_some(1),
        };
        if at > max_len {
            // So many bytes are before the end, or before what can still become one.
            return Next::Refused;
        }
        if let Some(end) = end {
            return Next::Message(stream[..at].to_vec(), at + end);
        }
        if rest == b"\r" && !matches!(format, Format::Lf) {
            return Next::Unfinished;
        }
    }
    Next::Unfinished
}

/// All messages of a stream, and where it was refused.
type Outcome = (Vec<Vec<u8>>, Option<u64>);

fn expected(format: Format, max_len: usize, stream: &[u8]) -> Outcome {
    let (mut messages, mut at) = (Vec::new(), 0);
    loop {
        match next(format, max_len, &stream[at..]) {
            Next::Message(message, whole) => {
                messages.push(message);
                at += whole;
            }
            Next::Unfinished => return (messages, None),
            Next::Refused => return (messages, Some(at as u64)),
        }
    }
}

fn decoded(codec: &Codec, stream: &[u8], pieces: &[u8]) -> Outcome {
    let (mut input, mut messages) = (Buffer::new(), Vec::new());
    let mut rest = stream;
    for len in pieces.iter().map(|len| usize::from(*len)).cycle() {
        let (piece, behind) = rest.split_at(len.clamp(1, 64).min(rest.len()));
        rest = behind;
        input.append(piece);
        loop {
            let before = input.readable().to_vec();
            match codec.take(&mut input) {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => {
                    assert_eq!(input.readable(), before, "consumed without a message");
                    break;
                }
                Err(error) => {
                    assert_eq!(input.readable(), before, "consumed what was refused");
                    let start = stream.len() - rest.len() - input.len();
                    return (messages, Some(start as u64 + error.offset()));
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    (messages, None)
}

/// Encodes pieces of the stream, and decodes what came of it.
fn round_trip(codec: &Codec, format: Format, max_len: usize, stream: &[u8], pieces: &[u8]) {
    let (mut wire, mut sent, mut rest) = (Vec::new(), Vec::new(), stream);
    for len in pieces {
        let (message, behind) = rest.split_at(usize::from(*len).min(rest.len()));
        rest = behind;
        match codec.encode(message) {
            Ok(encoded) => {
                wire.extend_from_slice(encoded.readable());
                sent.push(message.to_vec());
            }
            Err(EncodeError::TooLong { len, max }) => {
                assert_eq!(len, message.len());
                assert!(len > max && max <= max_len);
                // A length of one byte that counts itself tells one byte less.
                assert!(max == max_len || matches!(codec, Codec::Frames(_)) && max == 254);
            }
            Err(EncodeError::ContainsEnd { offset }) => {
                assert!(matches!(codec, Codec::Lines(_)));
                assert!(b"\r\n".contains(&message[offset]));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(expected(format, max_len, &wire), (sent.clone(), None));
    assert_eq!(decoded(codec, &wire, pieces), (sent, None));
}

fuzz_target!(|input: Input<'_>| {
    let Input { format, max_len, pieces, stream } = input;
    let max_len = max_len.into();
    let codec = Codec::new(format, max_len);
    let whole = expected(format, max_len, stream);
    assert_eq!(decoded(&codec, stream, &pieces), whole);
    assert_eq!(decoded(&codec, stream, &[1]), whole);
    round_trip(&codec, format, max_len, stream, &pieces);
});
