use std::path::Path;

use optpipe_configs::schema;

#[test]
fn the_schema_files_are_current() {
    for (name, schema) in schema::all() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{name}.schema.json"));
        let expected = schema::text(&schema);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "{} is out of date: run `UPDATE=1 cargo test --release -p optpipe-configs schema` and commit it",
            path.display()
        );
    }
}

#[test]
fn unknown_fields_are_refused_by_the_schemas_too() {
    for (name, schema) in schema::all() {
        assert_eq!(schema.as_value()["additionalProperties"], serde_json::Value::Bool(false), "{name}");
    }
}
