//! Numbers that nobody measured: what is not finite, and what no sum can hold.

use serde::Serialize;
use serde_yaml::Value;

use super::Invalid;

/// The largest number, either way, in a file of results: 2^58 ns are nine years, 2^58 bytes 256 PiB. Sums of some of
/// them stay far from the end of 64 bits.
pub const LARGEST_NUMBER: u64 = 1 << 58;

/// Whether every number in a value, wherever it stands, is finite and at most [`LARGEST_NUMBER`] either way: for
/// files of results, which have too many numbers to name each. The value is copied: not for lists of every op.
pub fn check_numbers(value: &impl Serialize) -> Result<(), Invalid> {
    let value = serde_yaml::to_value(value).map_err(|e| Invalid::new("", e.to_string()))?;
    walk("", &value)
}

fn walk(at: &str, value: &Value) -> Result<(), Invalid> {
    match value {
        Value::Number(number) => {
            let size = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
            let fine = match size {
                Some(size) => size <= LARGEST_NUMBER,
                None => number.as_f64().is_some_and(|x| x.abs() <= LARGEST_NUMBER as f64),
            };
            let expected = || format!("expected a number of at most {LARGEST_NUMBER}, found {number}");
            if fine { Ok(()) } else { Err(Invalid::new(at, expected())) }
        }
        Value::Sequence(list) => list.iter().enumerate().try_for_each(|(i, value)| walk(&format!("{at}[{i}]"), value)),
        Value::Mapping(map) => map.iter().try_for_each(|(key, value)| {
            let key = key.as_str().unwrap_or("?");
            walk(&if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }, value)
        }),
        Value::Tagged(tagged) => walk(at, &tagged.value),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_number_is_found_wherever_it_stands() {
        #[derive(Serialize)]
        struct Inner {
            list: Vec<f64>,
        }
        #[derive(Serialize)]
        struct Outer {
            count: u64,
            inner: Option<Inner>,
        }
        let field = |count, list: &[f64]| {
            check_numbers(&Outer { count, inner: Some(Inner { list: list.to_vec() }) })
                .err()
                .map(|invalid| invalid.field)
        };
        assert_eq!(field(LARGEST_NUMBER, &[-1.5, 0.0]), None);
        assert_eq!(field(LARGEST_NUMBER + 1, &[]), Some("count".to_owned()));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            assert_eq!(field(0, &[1.0, bad]), Some("inner.list[1]".to_owned()), "{bad}");
        }
        assert_eq!(check_numbers(&Outer { count: 1, inner: None }), Ok(()));
        assert!(check_numbers(&i64::MIN).is_err());
    }
}
