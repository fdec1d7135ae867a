//! The arithmetic of `${eval:'...'}` in configurations: numbers, `+ - * / // %`, comparisons, `and or not`,
//! `a if c else b`. No names, calls or attributes. Source: the Python language reference, 6 Expressions.

use super::config_tree::Value;

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// Evaluates an expression.
pub(super) fn evaluate(text: &str) -> Result<Value, String> {
    let fail = |problem: String| format!("eval {}: {problem}", crate::package::shown(text));
    let tokens = tokens(text).map_err(fail)?;
    let mut parser = Parser { tokens: &tokens, depth: 0 };
    let value = parser.choice().map_err(fail)?;
    if let Some(token) = parser.tokens.first() {
        return Err(fail(format!("unexpected {token:?}")));
    }
    Ok(value)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Value(Value),
    Sign(&'static str),
}

const SIGNS: [&str; 13] = ["//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "<", ">", "("];
const WORDS: [&str; 5] = ["if", "else", "and", "or", "not"];

fn tokens(mut text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start();
        let Some(first) = text.chars().next() else { return Ok(tokens) };
        let number = first.is_ascii_digit() || first == '.';
        let length = if number {
            // An exponent may carry a sign.
            let mut before = ' ';
            text.find(|c: char| {
                let part = c.is_ascii_alphanumeric()
                    || matches!(c, '.' | '_')
                    || (matches!(c, '+' | '-') && matches!(before, 'e' | 'E'));
                before = c;
                !part
            })
        } else {
            text.find(|c: char| !c.is_alphanumeric() && c != '_')
        }
        .unwrap_or(text.len());
        let (word, rest) = text.split_at(length);
        if number {
            let value = match word.parse::<i64>() {
                Ok(v) => Value::Int(v),
                Err(_) => match word.parse::<f64>() {
                    Ok(v) => Value::Float(v),
                    Err(_) => return Err(format!("{word:?} is not a number")),
                },
            };
            tokens.push(Token::Value(value));
            text = rest;
        } else if !word.is_empty() {
            tokens.push(match word {
                "True" => Token::Value(Value::Bool(true)),
                "False" => Token::Value(Value::Bool(false)),
                "None" => Token::Value(Value::Null),
                _ => match WORDS.iter().find(|w| **w == word) {
                    Some(word) => Token::Sign(word),
                    None => return Err(format!("names such as {word:?} are not supported")),
                },
            });
            text = rest;
        } else if let Some(sign) = SIGNS.iter().chain(&[")"]).find(|sign| text.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            text = &text[sign.len()..];
        } else {
            return Err(format!("{first:?} is not supported"));
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
}

type Parsed = Result<Value, String>;

impl Parser<'_> {
    fn accept(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        match self.tokens.first() {
            Some(Token::Sign(sign)) if signs.contains(sign) => {
                self.tokens = &self.tokens[1..];
                Some(sign)
            }
            _ => None,
        }
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Parsed) -> Parsed {
        if self.depth == MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let value = parse(self);
        self.depth -= 1;
        value
    }

    fn choice(&mut self) -> Parsed {
        let value = self.or()?;
        if self.accept(&["if"]).is_none() {
            return Ok(value);
        }
        let condition = self.or()?;
        if self.accept(&["else"]).is_none() {
            return Err("expected else".into());
        }
        let other = self.nested(Self::choice)?;
        Ok(if truth(&condition) { value } else { other })
    }

    fn or(&mut self) -> Parsed {
        let mut value = self.and()?;
        while self.accept(&["or"]).is_some() {
            let right = self.and()?;
            value = if truth(&value) { value } else { right };
        }
        Ok(value)
    }

    fn and(&mut self) -> Parsed {
        let mut value = self.not()?;
        while self.accept(&["and"]).is_some() {
            let right = self.not()?;
            value = if truth(&value) { right } else { value };
        }
        Ok(value)
    }

    fn not(&mut self) -> Parsed {
        if self.accept(&["not"]).is_some() {
            return Ok(Value::Bool(!truth(&self.nested(Self::not)?)));
        }
        let left = self.sum()?;
        let Some(sign) = self.accept(&["==", "!=", "<=", ">=", "<", ">"]) else { return Ok(left) };
        let right = self.sum()?;
        let (l, r) = (number(&left)?, number(&right)?);
        Ok(Value::Bool(match sign {
            "==" => l == r,
            "!=" => l != r,
            "<=" => l <= r,
            ">=" => l >= r,
            "<" => l < r,
            _ => l > r,
        }))
    }

    fn sum(&mut self) -> Parsed {
        let mut value = self.product()?;
        while let Some(sign) = self.accept(&["+", "-"]) {
            let right = self.product()?;
            value = arithmetic(sign, &value, &right)?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Parsed {
        let mut value = self.unary()?;
        while let Some(sign) = self.accept(&["*", "//", "/", "%"]) {
            let right = self.unary()?;
            value = arithmetic(sign, &value, &right)?;
        }
        Ok(value)
    }

    fn unary(&mut self) -> Parsed {
        match self.accept(&["-", "+", "("]) {
            Some("(") => {
                let value = self.nested(Self::choice)?;
                self.accept(&[")"]).map(|_| value).ok_or_else(|| "a parenthesis is not closed".into())
            }
            Some(sign) => {
                let value = self.nested(Self::unary)?;
                arithmetic(sign, &Value::Int(0), &value)
            }
            None => match self.tokens.split_first() {
                Some((Token::Value(value), rest)) => {
                    self.tokens = rest;
                    Ok(value.clone())
                }
                Some((token, _)) => Err(format!("unexpected {token:?}")),
                None => Err("ends early".into()),
            },
        }
    }
}

fn truth(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false) | Value::Int(0)) && *value != Value::Float(0.0)
}

fn number(value: &Value) -> Result<f64, String> {
    match *value {
        Value::Bool(v) => Ok(f64::from(u8::from(v))),
        Value::Int(v) => Ok(v as f64),
        Value::Float(v) => Ok(v),
        _ => Err(format!("expected a number, got {}", value.shown())),
    }
}

fn arithmetic(sign: &str, left: &Value, right: &Value) -> Parsed {
    let int = |value: &Value| match *value {
        Value::Int(v) => Some(v),
        Value::Bool(v) => Some(i64::from(v)),
        _ => None,
    };
    if let (Some(l), Some(r)) = (int(left), int(right))
        && sign != "/"
    {
        let floor = |l: i64, r: i64| {
            let (q, rest) = (l.checked_div(r)?, l.checked_rem(r)?);
            Some(if rest != 0 && (rest < 0) != (r < 0) { q - 1 } else { q })
        };
        let result = match sign {
            "+" => l.checked_add(r),
            "-" => l.checked_sub(r),
            "*" => l.checked_mul(r),
            "//" => floor(l, r),
            _ => floor(l, r).and_then(|q| l.checked_sub(q.checked_mul(r)?)),
        };
        return result.map(Value::Int).ok_or_else(|| "overflows or divides by zero".into());
    }
    let (l, r) = (number(left)?, number(right)?);
    if r == 0.0 && matches!(sign, "/" | "//" | "%") {
        return Err("divides by zero".into());
    }
    Ok(Value::Float(match sign {
        "+" => l + r,
        "-" => l - r,
        "*" => l * r,
        "/" => l / r,
        "//" => (l / r).floor(),
        _ => l - (l / r).floor() * r,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_python_gives() {
        for (text, expected) in [
            ("2 if True else 20 + 2", Value::Int(2)),
            ("2 if False else 20 + 2", Value::Int(22)),
            ("3-1+0", Value::Int(2)),
            ("-7 // 2", Value::Int(-4)),
            ("-7 % 3", Value::Int(2)),
            ("7 / 2", Value::Float(3.5)),
            ("1e-3 * 2", Value::Float(0.002)),
            ("2 * (3 + 4)", Value::Int(14)),
            ("not 1 > 2 and 3", Value::Int(3)),
            ("None or 5", Value::Int(5)),
            ("1 if 0 else 2 if 0 else 3", Value::Int(3)),
        ] {
            assert_eq!(evaluate(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        let deep = format!("{}1{}", "(".repeat(100), ")".repeat(100));
        for text in [
            "",
            "1 +",
            "__import__('os')",
            "1 2",
            "1 // 0",
            "1 % 0",
            "9223372036854775807 + 1",
            "(1",
            "1 if 2",
            "1..2",
            "é",
            "None + 1",
            &deep,
            &"-".repeat(1000),
        ] {
            assert!(evaluate(text).is_err(), "{text}");
        }
    }
}
