"""What every Khomas service needs, without a domain word."""
