use super::super::pickle;
use super::*;

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn map(items: &[(&str, Value)]) -> Value {
    Value::Map(items.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn tree(items: &[(&str, Value)]) -> Tree {
    Tree::from_value(map(items))
}

#[test]
fn interpolations_as_omegaconf_resolves_them() {
    let policy = map(&[
        ("horizon", text("${horizon}")),
        ("again", text("${.horizon}")),
        ("up", text("${..horizon}")),
        ("label", text("h${horizon}-${flag}-${ratio}")),
        ("size", text("${eval:'${horizon} if ${flag} else 0 + 1'}")),
        ("size_of_size", text("${policy.size}")),
        ("nested", text("${${which}}")),
        ("second", text("${list.1}")),
        ("bracket", text("${list[0]}")),
        ("model", text("${shared.model}")),
        ("sum", text("${eval:'${.size} + 1'}")),
    ]);
    let tree = tree(&[
        ("horizon", Value::Int(16)),
        ("flag", Value::Bool(true)),
        ("ratio", Value::Float(0.5)),
        ("which", text("horizon")),
        ("list", Value::List(vec![Value::Int(3), text("${horizon}")])),
        ("none", Value::Null),
        ("shared", map(&[("model", map(&[("width", text("${horizon}"))]))])),
        ("policy", policy),
    ]);
    for (path, expected) in [
        ("horizon", Some(Value::Int(16))),
        ("policy.horizon", Some(Value::Int(16))),
        ("policy.again", Some(Value::Int(16))),
        ("policy.up", Some(Value::Int(16))),
        ("policy.label", Some(text("h16-True-0.5"))),
        ("policy.size", Some(Value::Int(16))),
        ("policy.size_of_size", Some(Value::Int(16))),
        ("policy.nested", Some(Value::Int(16))),
        ("policy.second", Some(Value::Int(16))),
        ("policy.bracket", Some(Value::Int(3))),
        ("policy.model.width", Some(Value::Int(16))),
        ("policy.sum", Some(Value::Int(17))),
        ("list", Some(Value::List(vec![Value::Int(3), Value::Int(16)]))),
        ("none", None),
        ("nothing.at.all", None),
        ("horizon.deeper", None),
    ] {
        assert_eq!(tree.get(path), Ok(expected), "{path}");
    }
    assert_eq!(tree.keys("policy.model"), Ok(Some(vec!["width"])));
    assert_eq!(tree.keys("horizon"), Ok(None));
}

#[test]
fn what_cannot_be_resolved_is_named() {
    let tree = tree(&[
        ("a", text("${b}")),
        ("b", text("${a}")),
        ("c", text("x${c}")),
        ("env", text("${oc.env:HOME}")),
        ("open", text("x${")),
        ("lost", text("x${nowhere}")),
        ("call", text("${eval:'open(1)'}")),
        ("list", Value::List(vec![Value::Int(1)])),
        ("splice", text("x${list}")),
        ("long", text(&"${".repeat(3000))),
    ]);
    for (path, part) in [
        ("a", "in a circle"),
        ("c", "in a circle"),
        ("env", "resolver \"oc.env\" is not supported"),
        ("open", "not closed"),
        ("lost", "names nothing"),
        ("call", "not supported"),
        ("splice", "within text"),
        ("long", "4096 bytes"),
    ] {
        let error = tree.get(path).expect_err(path);
        assert!(error.contains(part), "{path}: {error}");
    }
}

#[test]
fn growing_interpolations_end_in_an_error() {
    let mut items = vec![("l0".to_owned(), text("xxxxxxxxxx"))];
    for i in 1..30 {
        items.push((format!("l{i}"), text(&format!("${{l{0}}} ${{l{0}}}", i - 1))));
    }
    let error = Tree::from_value(Value::Map(items)).get("l29").expect_err("grows");
    assert!(error.contains("4096 bytes") || error.contains("interpolations"), "{error}");
}

#[test]
fn omegaconf_objects_are_read_and_cycles_end() {
    // DictConfig with _content {"a": AnyNode(_val = 7)} and itself as its parent.
    let bytes = b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81q\0}(V_parent\nh\0V_content\n\
        }Va\ncomegaconf.nodes\nAnyNode\n)\x81}(V_val\nK\x07V_parent\nh\0ubsub.";
    let pickle = pickle::read(bytes).unwrap();
    let tree = Tree::new(&pickle, pickle.root()).unwrap();
    assert_eq!(tree.get("a"), Ok(Some(Value::Int(7))));

    for (bytes, part) in [
        (&b"}q\0Va\nh\0s."[..], "in a circle"),
        (b"]q\0h\0a.", "in a circle"),
        (b"}NNs.", "expected a key that is a string"),
        (b"comegaconf.nodes\nAnyNode\n)\x81.", "holds no value"),
    ] {
        let pickle = pickle::read(bytes).unwrap();
        let error = Tree::new(&pickle, pickle.root()).expect_err("must be refused");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn shared_values_count_as_often_as_they_are_reached() {
    let mut bytes = b"(K\x01q\0".to_vec();
    for level in 1..=20u8 {
        bytes.push(b'(');
        for _ in 0..10 {
            bytes.extend([b'h', level - 1]);
        }
        bytes.extend([b'l', b'q', level]);
    }
    bytes.extend(b"t.");
    let pickle = pickle::read(&bytes).unwrap();
    let error = Tree::new(&pickle, pickle.root()).expect_err("10^20 values");
    assert!(error.contains("20000 values"), "{error}");
}
