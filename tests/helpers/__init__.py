"""What several test files share; helpers are imported from here, never from another test."""
