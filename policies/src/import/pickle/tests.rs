use proptest::prelude::*;

use super::*;

fn error(bytes: &[u8]) -> PickleError {
    read(bytes).expect_err("must be refused")
}

fn root(bytes: &[u8]) -> (Pickle, Node) {
    let pickle = read(bytes).unwrap_or_else(|e| panic!("{e}"));
    let node = pickle.get(pickle.root()).clone();
    (pickle, node)
}

#[test]
fn scalars_of_every_protocol() {
    for (bytes, expected) in [
        (&b"N."[..], Node::None),
        (b"I01\n.", Node::Bool(true)),
        (b"I-12\n.", Node::Int(-12)),
        (b"L123L\n.", Node::Int(123)),
        (b"L123456789012345678901234567890L\n.", Node::BigInt),
        (b"F2.5\n.", Node::Float(2.5)),
        (b"Vabc\n.", Node::Str("abc".into())),
        (b"S'abc'\n.", Node::Str("abc".into())),
        (b"U\x02ab.", Node::Str("ab".into())),
        (b"T\x02\0\0\0\xffb.", Node::Bytes(vec![0xff, b'b'])),
        (b"\x80\x02\x89.", Node::Bool(false)),
        (b"\x80\x02K\xff.", Node::Int(255)),
        (b"\x80\x02M\x01\x02.", Node::Int(513)),
        (b"\x80\x02J\xfe\xff\xff\xff.", Node::Int(-2)),
        (b"\x80\x02\x8a\x00.", Node::Int(0)),
        (b"\x80\x02\x8a\x02\x00\xff.", Node::Int(-256)),
        (b"\x80\x02\x8b\x09\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x09.", Node::BigInt),
        (b"\x80\x02G\x3f\xf0\0\0\0\0\0\0.", Node::Float(1.0)),
        (b"\x80\x02X\x02\0\0\0ab.", Node::Str("ab".into())),
        (b"\x80\x03C\x01\xfe.", Node::Bytes(vec![0xfe])),
        (b"\x80\x03B\x01\0\0\0\xfe.", Node::Bytes(vec![0xfe])),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0\x8c\x02ab\x94.", Node::Str("ab".into())),
        (b"\x80\x04\x8d\x01\0\0\0\0\0\0\0a.", Node::Str("a".into())),
        (b"\x80\x05\x96\x01\0\0\0\0\0\0\0a.", Node::Bytes(vec![b'a'])),
    ] {
        assert_eq!(root(bytes).1, expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn collections_of_every_protocol() {
    for bytes in [
        &b"(lp0\nI1\naI2\na."[..],
        b"(I1\nI2\nl.",
        b"]q\0(K\x01K\x02e.",
        b"\x80\x04]\x94(K\x01K\x02e.",
        b"]K\x01aK\x02a.",
    ] {
        let (pickle, node) = root(bytes);
        let Node::List(elements) = node else { panic!("{node:?}") };
        let values: Vec<_> = elements.iter().map(|&id| pickle.get(id)).collect();
        assert_eq!(values, [&Node::Int(1), &Node::Int(2)], "{}", bytes.escape_ascii());
    }
    for bytes in [&b"(K\x01K\x02t."[..], b"K\x01K\x02\x86.", b"(K\x01K\x021K\x01K\x02\x86."] {
        let (pickle, _) = root(bytes);
        let values: Vec<_> = pickle.tuple(pickle.root()).unwrap().iter().map(|&id| pickle.size(id)).collect();
        assert_eq!(values, [Some(1), Some(2)]);
    }
    for bytes in [&b"(Va\nK\x07d."[..], b"}Va\nK\x07s.", b"}(Va\nK\x01Va\nK\x07u."] {
        let (pickle, _) = root(bytes);
        let pairs = pickle.pairs(pickle.root()).unwrap();
        assert_eq!(pickle.size(pickle.item(pairs, "a").unwrap()), Some(7), "the last one counts");
    }
    assert!(matches!(root(b"\x80\x04\x8f(K\x01\x90.").1, Node::Set(elements) if elements.len() == 1));
    assert!(matches!(root(b"\x80\x04(K\x01\x91.").1, Node::Set(elements) if elements.len() == 1));
}

#[test]
fn calls_become_objects_and_nothing_runs() {
    for bytes in [
        &b"cos\nsystem\n(Vtrue\ntR."[..],
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cos\nsystem\nVtrue\n\x85\x81.",
        b"(Vtrue\nios\nsystem\n.",
        b"(cos\nsystem\nVtrue\no.",
        b"\x80\x04cos\nsystem\nVtrue\n\x85}\x92.",
    ] {
        let (pickle, _) = root(bytes);
        let (module, name, object) = pickle.object(pickle.root()).unwrap();
        assert_eq!((module, name), ("os", "system"));
        assert_eq!(pickle.text(pickle.tuple(object.args).unwrap()[0]), Some("true"));
    }
}

#[test]
fn shared_values_are_one_value_and_cycles_are_fine() {
    // a = []; [a, a] and then a.append(1), through the memo.
    let (pickle, node) = root(b"](]q\x05h\x05eh\x05K\x01a0.");
    let Node::List(elements) = node else { panic!("{node:?}") };
    assert_eq!(elements[0], elements[1]);
    assert!(matches!(pickle.get(elements[0]), Node::List(inner) if inner.len() == 1));

    let (pickle, _) = root(b"\x80\x02cm\nC\n)\x81q\0}Vself\nh\0sb.");
    let (_, _, object) = pickle.object(pickle.root()).unwrap();
    let state = pickle.pairs(object.state.unwrap()).unwrap();
    assert_eq!(pickle.item(state, "self"), Some(pickle.root()));
}

#[test]
fn broken_pickles_are_named() {
    assert_eq!(error(b""), PickleError::Truncated { offset: 0 });
    assert_eq!(error(b"\x80\x02X\xff\xff\xff\xffab."), PickleError::Truncated { offset: 10 });
    assert_eq!(error(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), PickleError::Truncated { offset: 10 });
    assert_eq!(error(b"cno line"), PickleError::Truncated { offset: 8 });
    assert_eq!(error(b"N\xff."), PickleError::UnknownOpcode { opcode: 0xff, offset: 1 });
    for (bytes, name) in [
        (&b"\x82\x01."[..], "EXT1"),
        (b"\x83\x01\0.", "EXT2"),
        (b"\x84\x01\0\0\0.", "EXT4"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"N\x98.", "READONLY_BUFFER"),
    ] {
        assert!(matches!(error(bytes), PickleError::Refused { name: n, .. } if n == name), "{name}");
    }
    for (bytes, part) in [
        (&b"."[..], "too few"),
        (b"NN.", "left on the stack"),
        (b"(N.", "left on the stack"),
        (b"(.", "too few"),
        (b"\x80\x06N.", "newer than 5"),
        (b"h\x00.", "stored"),
        (b"q\x00.", "too few"),
        (b"t.", "no mark"),
        (b"(K\x01\x86.", "too few"),
        (b"}(K\x01u.", "no value"),
        (b"]K\x01K\x02s.", "set items"),
        (b"}K\x01a.", "append"),
        (b"]K\x01b.", "state"),
        (b"NNR.", "tuple of arguments"),
        (b"NN\x93.", "as strings"),
        (b"Fx\n.", "a number"),
        (b"I1.5\n.", "an integer"),
        (b"gx\n.", "decimal"),
        (b"V\\u0041\n.", "escapes"),
        (b"Sabc\n.", "escapes"),
        (b"(o.", "a class"),
    ] {
        let error = error(bytes).to_string();
        assert!(error.contains(part), "{}: {error}", bytes.escape_ascii());
    }
}

#[test]
fn memory_is_bounded() {
    let too_many = |bytes: &[u8], part: &str| {
        let error = error(bytes);
        assert!(matches!(error, PickleError::TooMany { what, .. } if what.contains(part)), "{error}");
    };
    too_many(&b"(".repeat(MAX_MARKS + 1), "within each other");
    too_many(&b"N".repeat(MAX_STACK + 1), "on the stack");
    too_many(&b"]0".repeat(MAX_NODES + 1), "values");
    too_many(&vec![b'N'; MAX_BYTES as usize + 1], "bytes");
}

#[test]
fn laughs_by_the_billion_stay_small() {
    // Each level is a tuple of the level below, ten times: 10^60 leaves, a few values.
    let mut bytes = b"(K\x01q\0".to_vec();
    for level in 1..=60u8 {
        bytes.push(b'(');
        for _ in 0..10 {
            bytes.extend([b'h', level - 1]);
        }
        bytes.extend([b't', b'q', level]);
    }
    bytes.extend(b"t.");
    let (pickle, _) = root(&bytes);
    assert!(pickle.nodes.len() < 100, "{}", pickle.nodes.len());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    #[test]
    fn random_operations_never_panic(
        operations in prop::collection::vec(
            prop::sample::select(&b"(.012NK}])tlduseaoRbq\0h\0Q\x85\x86\x87\x88\x89\x81\x8f\x90\x91\x92\x93\x94"[..]),
            0..300,
        )
    ) {
        if let Ok(pickle) = read(&operations) {
            for i in 0..pickle.nodes.len() {
                pickle.kind(Id(i as u32));
            }
        }
    }
}
