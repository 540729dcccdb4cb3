"""What settings are made of: their base class, prices, a server's address, the form of answers, the date."""
