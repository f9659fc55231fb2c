//! Codecs on plain bytes: whatever the format and however the stream is cut, the same messages.

use proptest::prelude::*;

use super::*;

/// A codec as the tests use it: with what it remembers of its stream.
#[derive(Clone, Debug)]
enum Codec {
    Frames(FrameCodec),
    Lines(LineCodec),
}

impl Codec {
    fn encode(&self, message: &[u8]) -> Result<Buffer, EncodeError> {
        match self {
            Codec::Frames(frames) => frames.encode(message),
            Codec::Lines(lines) => lines.encode(message),
        }
    }

    fn take<'b>(&mut self, input: &'b mut Buffer) -> Result<Option<&'b [u8]>, DecodeError> {
        match self {
            Codec::Frames(frames) => frames.take(input),
            Codec::Lines(lines) => lines.take(input),
        }
    }
}

/// All messages of a stream that comes in pieces, and the error that ended it, counted from the
/// first byte of the stream.
fn messages(codec: &Codec, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    let (mut codec, mut input, mut messages) = (codec.clone(), Buffer::new(), Vec::new());
    let mut received = 0;
    for piece in pieces {
        input.append(piece);
        received += piece.len();
        loop {
            let start = received - input.len();
            match codec.take(&mut input) {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => break,
                Err(e) => return (messages, Some(e.behind(start as u64))),
            }
        }
    }
    (messages, None)
}

fn check_every_split(codec: &Codec, stream: &[u8]) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    let whole = messages(codec, &[stream]);
    for at in 0..=stream.len() {
        let (left, right) = stream.split_at(at);
        assert_eq!(messages(codec, &[left, right]), whole, "split at {at}");
    }
    let bytes: Vec<_> = stream.chunks(1).collect();
    assert_eq!(messages(codec, &bytes), whole, "byte by byte");
    whole
}

fn frames(stream: &[u8], codec: FrameCodec) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    check_every_split(&Codec::Frames(codec), stream)
}

fn lines(stream: &[u8], codec: LineCodec) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    check_every_split(&Codec::Lines(codec), stream)
}

fn ok(messages: &[&str]) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    (messages.iter().map(|m| m.as_bytes().to_vec()).collect(), None)
}

fn then(messages: &[&str], offset: usize, why: &str) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    (ok(messages).0, Some(DecodeError::new(offset, why.to_owned())))
}

#[test]
fn frames_of_each_width_and_order() {
    let all = ok(&["ab", "", "c"]);
    assert_eq!(frames(b"\x02ab\0\x01c", FrameCodec::u8()), all);
    assert_eq!(frames(b"\x02ab\0\x01c", FrameCodec::u8().little_endian()), all);
    assert_eq!(frames(b"\0\x02ab\0\0\0\x01c", FrameCodec::u16()), all);
    assert_eq!(frames(b"\x02\0ab\0\0\x01\0c", FrameCodec::u16().little_endian()), all);
    assert_eq!(frames(b"\0\0\0\x02ab\0\0\0\0\0\0\0\x01c", FrameCodec::u32()), all);
    let little = FrameCodec::u32().little_endian();
    assert_eq!(frames(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c", little), all);
    let big = b"\0\0\0\0\0\0\0\x02ab\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01c";
    assert_eq!(frames(big, FrameCodec::u64()), all);
    let little = b"\x02\0\0\0\0\0\0\0ab\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0c";
    assert_eq!(frames(little, FrameCodec::u64().little_endian()), all);
}

#[test]
fn a_length_that_counts_itself() {
    assert_eq!(frames(b"\x03ab\x01\x02c", FrameCodec::u8().counts_itself()), ok(&["ab", "", "c"]));
    assert_eq!(frames(b"\0\x04ab\0\x02", FrameCodec::u16().counts_itself()), ok(&["ab", ""]));
    assert_eq!(
        frames(b"\0\x04ab\0\x01rest", FrameCodec::u16().counts_itself()),
        then(&["ab"], 4, "a length of 1, which does not count its own 2 bytes"),
    );
}

#[test]
fn a_length_that_is_too_great_is_refused_when_it_is_there() {
    let small = FrameCodec::u32().max_len(3);
    let too_great = |n: u64| format!("a frame of {n} bytes, where 3 are allowed");
    assert_eq!(frames(b"\0\0\0\x03abc", small), ok(&["abc"]));
    assert_eq!(frames(b"\0\0\0\x01a\0\0\0\x04", small), then(&["a"], 5, &too_great(4)));
    assert_eq!(frames(b"\xff\xff\xff\xff", small), then(&[], 0, &too_great(0xffff_ffff)));
    assert_eq!(
        frames(&[0xff; 8], FrameCodec::u64().max_len(3)),
        then(&[], 0, &too_great(u64::MAX))
    );
    let itself = FrameCodec::u8().counts_itself().max_len(3);
    assert_eq!(frames(b"\x04abc\x05", itself), then(&["abc"], 4, &too_great(4)));
}

#[test]
fn a_length_of_which_all_are_allowed_is_waited_for() {
    let any = FrameCodec::u64().max_len(usize::MAX);
    assert_eq!(frames(b"\xff\xff\xff\xff\xff\xff\xff\xffabc", any), ok(&[]));
    assert_eq!(frames(b"\0\0\0\0\0\0\0\x03abc", any), ok(&["abc"]));
}

#[test]
fn a_frame_longer_than_its_length_can_tell_is_not_encoded() {
    let codec = FrameCodec::u8();
    assert_eq!(codec.encode(vec![7; 255]).unwrap().len(), 256);
    assert_eq!(codec.encode(vec![7; 256]), Err(EncodeError::TooLong { len: 256, max: 255 }));
    let itself = codec.counts_itself();
    assert_eq!(itself.encode(vec![7; 254]).unwrap().readable()[0], 255);
    assert_eq!(itself.encode(vec![7; 255]), Err(EncodeError::TooLong { len: 255, max: 254 }));
    let small = FrameCodec::u64().max_len(3);
    assert_eq!(small.encode("abcd"), Err(EncodeError::TooLong { len: 4, max: 3 }));
}

#[test]
fn encoding_leaves_the_message_where_it_is() {
    for codec in [FrameCodec::u8(), FrameCodec::u64()] {
        let message = Buffer::from("message");
        let place = message.readable().as_ptr();
        let frame = codec.encode(message).unwrap();
        assert_eq!(frame.readable()[frame.len() - 7..].as_ptr(), place);
    }
    let mut line = Buffer::with_capacity(100);
    line.append(b"line");
    let place = line.readable().as_ptr();
    assert_eq!(LineCodec::crlf().encode(line).unwrap().readable().as_ptr(), place);
}

#[test]
fn lines_of_each_kind() {
    let stream = b"one\ntwo\r\n\n\r\nthree\r\n";
    assert_eq!(lines(stream, LineCodec::lf()), ok(&["one", "two\r", "", "\r", "three\r"]));
    assert_eq!(lines(stream, LineCodec::crlf()), ok(&["one\ntwo", "\n", "three"]));
    assert_eq!(lines(stream, LineCodec::lf_or_crlf()), ok(&["one", "two", "", "", "three"]));
    let stream = b"\r\r\n\r\rx\r\n";
    assert_eq!(lines(stream, LineCodec::lf()), ok(&["\r\r", "\r\rx\r"]));
    assert_eq!(lines(stream, LineCodec::crlf()), ok(&["\r", "\r\rx"]));
    assert_eq!(lines(stream, LineCodec::lf_or_crlf()), ok(&["\r", "\r\rx"]));
}

#[test]
fn what_has_no_end_yet_is_not_a_line() {
    for codec in [LineCodec::lf(), LineCodec::crlf(), LineCodec::lf_or_crlf()] {
        assert_eq!(lines(b"one\r\ntwo\r", codec.clone()).0.len(), 1);
        assert_eq!(lines(b"", codec), ok(&[]));
    }
}

#[test]
fn a_line_that_is_too_long_is_refused() {
    let why = "a line of more than 3 bytes";
    let (lf, crlf, either) = (
        LineCodec::lf().max_len(3),
        LineCodec::crlf().max_len(3),
        LineCodec::lf_or_crlf().max_len(3),
    );
    assert_eq!(lines(b"abc\nabcd\n", lf.clone()), then(&["abc"], 4, why));
    assert_eq!(lines(b"abc\r\nabcd\r\n", crlf.clone()), then(&["abc"], 5, why));
    assert_eq!(lines(b"abc\r\nabc\nabcd\n", either.clone()), then(&["abc", "abc"], 9, why));
    assert_eq!(lines(b"abc\r\n", lf.clone()), then(&[], 0, why));
    assert_eq!(lines(b"abc\n\r\n", crlf.clone()), then(&[], 0, why));
    // Not a byte more is waited for than could change the answer.
    for codec in [&lf, &crlf, &either] {
        assert_eq!(lines(b"abcd", codec.clone()), then(&[], 0, why));
    }
    assert_eq!(lines(b"abc\r", lf), then(&[], 0, why));
    assert_eq!(lines(b"abc\r", crlf.clone()), ok(&[]));
    assert_eq!(lines(b"abc\r", either.clone()), ok(&[]));
    assert_eq!(lines(b"abc\r\r", crlf), then(&[], 0, why));
    assert_eq!(lines(b"abc\rd", either), then(&[], 0, why));
}

#[test]
fn a_line_that_would_end_before_its_end_is_not_encoded() {
    let contains = |offset| Err(EncodeError::ContainsEnd { offset });
    assert_eq!(LineCodec::lf().encode("a\rb").unwrap(), Buffer::from("a\rb\n"));
    assert_eq!(LineCodec::lf().encode("a\nb"), contains(1));
    assert_eq!(LineCodec::crlf().encode("ab").unwrap(), Buffer::from("ab\r\n"));
    assert_eq!(LineCodec::crlf().encode("a\nb"), contains(1));
    assert_eq!(LineCodec::crlf().encode("ab\r"), contains(2));
    assert_eq!(LineCodec::lf_or_crlf().encode("ab").unwrap(), Buffer::from("ab\n"));
    assert_eq!(LineCodec::lf_or_crlf().encode("ab\r"), contains(2));
    let long = LineCodec::lf().max_len(3).encode("abcd");
    assert_eq!(long, Err(EncodeError::TooLong { len: 4, max: 3 }));
}

fn codec() -> impl Strategy<Value = Codec> {
    let width = prop_oneof![
        Just(FrameCodec::u8()),
        Just(FrameCodec::u16()),
        Just(FrameCodec::u32()),
        Just(FrameCodec::u64()),
    ];
    let frames = (width, any::<bool>(), any::<bool>()).prop_map(|(mut codec, little, itself)| {
        if little {
            codec = codec.little_endian();
        }
        if itself {
            codec = codec.counts_itself();
        }
        codec
    });
    let lines =
        prop_oneof![Just(LineCodec::lf()), Just(LineCodec::crlf()), Just(LineCodec::lf_or_crlf())];
    let max = prop_oneof![0..20usize, 100..300usize];
    prop_oneof![
        (frames, max.clone()).prop_map(|(codec, max)| Codec::Frames(codec.max_len(max))),
        (lines, max).prop_map(|(codec, max)| Codec::Lines(codec.max_len(max))),
    ]
}

/// Bytes among which those that mean something are frequent.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![2 => Just(b'\r'), 2 => Just(b'\n'), 3 => 0..20u8, 2 => any::<u8>()]
}

fn cut<'s>(stream: &'s [u8], cuts: &[prop::sample::Index]) -> Vec<&'s [u8]> {
    let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &stream[ends[0]..ends[1]]).collect()
}

proptest! {
    /// What is encoded comes back, in whatever pieces.
    #[test]
    fn what_is_encoded_is_decoded(
        codec in codec(),
        contents in prop::collection::vec(prop::collection::vec(byte(), 0..40), 0..20),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let encoded = contents.iter().filter_map(|m| Some((m, codec.encode(m.as_slice()).ok()?)));
        let (sent, encoded): (Vec<_>, Vec<_>) = encoded.map(|(m, e)| (m.clone(), e.into_vec())).unzip();
        let stream = encoded.concat();
        prop_assert_eq!(messages(&codec, &cut(&stream, &cuts)), (sent, None));
    }

    /// Any bytes, in whatever pieces, mean the same, and what is a message can be encoded again.
    #[test]
    fn cuts_change_nothing(
        codec in codec(),
        stream in prop::collection::vec(byte(), 0..300),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let whole = messages(&codec, &[&stream]);
        prop_assert_eq!(&messages(&codec, &cut(&stream, &cuts)), &whole);
        for message in whole.0 {
            let encoded = codec.encode(message.as_slice());
            let too_long = matches!(encoded, Err(EncodeError::TooLong { .. }));
            prop_assert!(!too_long, "{:?}", encoded);
        }
    }
}
