"""Signs published models: attestations, a signature on every file, a bill of materials; and checks them again."""
