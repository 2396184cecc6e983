"""What the tests are built from: tiny models, small runs, judges that read no words, and listeners."""
